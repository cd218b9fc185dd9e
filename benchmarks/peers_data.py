"""What `peers.py` compares beside training: preparing scans, and scoring masks."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import macl
from macl import plugins
from macl.config.settings import PrepareSettings
from macl.data.store import Store
from macl.io.source import Case
from macl.metrics import score_classes
from macl.preprocessing.source import recognise

Work = Callable[[], object]


def is_installed(name: str) -> bool:
    """Whether a peer's package can be imported."""
    return importlib.util.find_spec(name) is not None


# ---------------------------------------------------------------- preparing


@contextmanager
def preparations(folder: Path, cases: int, spacing_mm: float | None) -> Iterator[dict[str, Work]]:
    """From compressed NIfTI files to normalised arrays on disk, case by case, in this process.

    macl's work is the whole of `macl prepare`. MONAI's is a chain of its transforms and NumPy's
    uncompressed files; nnU-Net's is its preprocessor for one case, without its search of the data
    set for a fingerprint.

    Args:
        folder: labelled scans of one channel, in a layout that macl reads.
        cases: how many of them to take.
        spacing_mm: in the plane of the slices; None: as scanned.
    """
    source = recognise(folder, plugins.readers()).read(folder)
    chosen = [case for case in source.cases if case.label][:cases]
    with tempfile.TemporaryDirectory() as scratch:
        raw, out = Path(scratch) / "raw", Path(scratch) / "out"
        for case in chosen:
            for kind, path in (("images", case.images[0]), ("labels", case.label)):
                (raw / kind).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(path), raw / kind / f"{case.name}.nii.gz")
        works: dict[str, Work] = {"macl": _macl_preparation(raw, out / "macl", spacing_mm)}
        if is_installed("monai"):
            works["monai"] = _monai_preparation(chosen, out / "monai", spacing_mm)
        if is_installed("nnunetv2"):
            works["nnunet"] = _nnunet_preparation(chosen, out / "nnunet", spacing_mm)
        yield works


def _macl_preparation(raw: Path, out: Path, spacing_mm: float | None) -> Work:
    settings = PrepareSettings(spacing_mm=spacing_mm)

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)
        with contextlib.redirect_stderr(io.StringIO()):
            macl.prepare(raw, out, settings=settings, workers=1)

    return prepare


def _monai_preparation(cases: Sequence[Case], out: Path, spacing_mm: float | None) -> Work:
    from monai import transforms

    both = ["image", "label"]
    spacing = (
        [transforms.Spacingd(both, (spacing_mm, spacing_mm, -1), mode=("bilinear", "nearest"))]
        if spacing_mm
        else []
    )
    chain = transforms.Compose(
        [
            transforms.LoadImaged(both, ensure_channel_first=True),
            transforms.Orientationd(both, "RAS", labels=None),
            *spacing,
            transforms.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True),
            transforms.NormalizeIntensityd("image"),
        ]
    )

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for case in cases:
            made = chain({"image": case.images[0], "label": case.label})
            np.save(out / f"{case.name}.npy", made["image"].numpy())
            np.save(out / f"{case.name}_label.npy", made["label"].numpy().astype(np.uint8))

    return prepare


def _nnunet_preparation(cases: Sequence[Case], out: Path, spacing_mm: float | None) -> Work:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import (  # pyright: ignore
        DefaultPreprocessor,
    )
    from nnunetv2.utilities.plans_handling.plans_handler import (  # pyright: ignore
        PlansManager,
    )

    resample = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "architecture": {},
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [192, 192],
        "spacing": [spacing_mm or 1.0] * 2,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resample,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resample, "is_seg": True, "order": 1},
    }
    plans = PlansManager(
        {
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "image_reader_writer": "SimpleITKIO",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": {}},
            "configurations": {"2d": configuration},
        }
    )
    dataset = {"labels": {"background": 0, "first": 1, "second": 2, "third": 3}}
    preprocessor = DefaultPreprocessor(verbose=False)

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for case in cases:
            preprocessor.run_case_save(
                str(out / case.name), [str(case.images[0])], str(case.label), plans,
                plans.get_configuration("2d"), dataset,
            )  # fmt: skip

    return prepare


# ---------------------------------------------------------------- scoring


def scorings(store: Store, cases: Sequence[str]) -> dict[str, Work]:
    """Dice, 95 % Hausdorff and average surface distance of every class, by each program's own
    functions, of labels against the same labels moved by two pixels.

    The average distance is the symmetric one where the program has it.
    """
    truths = [store.read(name, "label") for name in cases]
    pairs = [(truth, np.roll(truth, (2, 2), (1, 2))) for truth in truths]
    spacings = [store.case(name).spacing_mm for name in cases]
    classes = len(store.index.classes) - 1
    works: dict[str, Work] = {
        "macl": lambda: [
            score_classes(*pair, classes, spacing, "strict")
            for pair, spacing in zip(pairs, spacings, strict=True)
        ]
    }
    masks = [
        (truth == label, prediction == label, spacing)
        for (truth, prediction), spacing in zip(pairs, spacings, strict=True)
        for label in range(1, classes + 1)
        if (truth == label).any() and (prediction == label).any()
    ]
    if is_installed("monai"):
        works["monai"] = lambda: [_monai_scores(*each) for each in masks]
    if is_installed("medpy"):
        works["medpy"] = lambda: [_medpy_scores(*each) for each in masks]
    if is_installed("surface_distance"):
        works["surface_distance"] = lambda: [_surface_distance_scores(*each) for each in masks]
    return works


def _monai_scores(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> object:
    import torch
    from monai import metrics

    both = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
    return (
        metrics.compute_dice(*both),
        metrics.compute_hausdorff_distance(*both, percentile=95, spacing=spacing),
        metrics.compute_average_surface_distance(*both, symmetric=True, spacing=spacing),
    )


def _medpy_scores(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> object:
    from medpy.metric import binary  # pyright: ignore[reportMissingImports]

    return (
        binary.dc(prediction, truth),
        binary.hd95(prediction, truth, spacing),
        binary.assd(prediction, truth, spacing),
    )


def _surface_distance_scores(
    truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> object:
    import surface_distance  # pyright: ignore[reportMissingImports]

    distances = surface_distance.compute_surface_distances(truth, prediction, spacing)
    return (
        surface_distance.compute_dice_coefficient(truth, prediction),
        surface_distance.compute_robust_hausdorff(distances, 95),
        surface_distance.compute_average_surface_distance(distances),
    )
