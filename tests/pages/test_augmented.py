"""Pictures of a run's augmentation."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as images

from fakes.finished_runs import described
from fakes.toy_store import write_toy_store
from macl.config.settings import (
    AugmentationSettings,
    FinetuneSettings,
    PretrainSettings,
    SpatialSettings,
)
from macl.data.store import Store
from macl.pages.augmented import augmented_patches
from macl.records import runs
from macl.records.runs import RunRecord
from macl.tasks.segmentation import SegmentationTask

STILL = AugmentationSettings(spatial=SpatialSettings(mirror=0, deform=0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_toy_store(tmp_path / "store", patients=3)


def record_of(store: Store, settings: FinetuneSettings | PretrainSettings) -> RunRecord:
    return RunRecord(
        kind=settings.stage, finished=True, settings=settings.model_dump(mode="json"), seed=0,
        device="cpu", versions={}, cases=tuple(store.cases), recipe="strong",
        quantities=described(SegmentationTask), **runs.about_store(store, store.path),
    )  # fmt: skip


def pixels(jpeg: bytes) -> np.ndarray:
    return images.imread(io.BytesIO(jpeg), format="jpeg").astype(float)


@pytest.mark.parametrize("size", [(48, 40), (4, 48, 40)])
def test_patches_are_those_of_the_run_under_its_own_settings(store: Store, size) -> None:
    training = {"size": size}
    for augmentation, changes in ((STILL, False), (AugmentationSettings(), True)):
        settings = FinetuneSettings(
            dims=len(size), training=training, augmentation=augmentation  # pyright: ignore
        )  # fmt: skip
        patches = augmented_patches(store, record_of(store, settings))
        assert len(patches) == 4
        differences = []
        for patch in patches:
            before, after = pixels(patch.before), pixels(patch.after)
            assert before.shape == (*size[-2:], 3)
            # A structure is filled with a colour.
            assert (np.ptp(before, axis=2) > 40).sum() > 20
            differences.append(np.abs(before - after).mean())
        assert (max(differences) > 5) == changes


def test_views_of_a_pre_training_are_drawn_without_labels(store: Store) -> None:
    settings = PretrainSettings(
        method_settings={"views": SpatialSettings().model_dump()},
        training={"size": 48},  # pyright: ignore
    )
    patches = augmented_patches(store, record_of(store, settings))
    assert len(patches) == 4
    assert np.ptp(pixels(patches[0].after), axis=2).max() < 10
    none = PretrainSettings(method_settings={"decoder_blocks": 2})
    assert augmented_patches(store, record_of(store, none)) == ()
