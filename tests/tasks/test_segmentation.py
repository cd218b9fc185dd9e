"""The fine-tuning task: its network, its mirror axes, its losses, and its way back from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fakes.networks import SMALL as SMALL_NETWORKS
from macl.augmentation.geometry import AXES
from macl.config.settings import (
    ArrayAxis,
    AugmentationSettings,
    FinetuneSettings,
    IntensitySettings,
    SpatialSettings,
    TrainingSettings,
)
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.io.geometry import ANATOMICAL_AXES, Plane
from macl.losses import soft_dice
from macl.models import unet
from macl.plugins import find
from macl.records import runs
from macl.tasks.segmentation import (
    SegmentationTask,
    at_size,
    build_segmenter,
    load_segmenter,
    mirror_axes,
    resolve_finetuning,
    segmenter_weights,
)
from macl.utils import checkpoint
from macl.utils.errors import MaclError

SMALL = {"backbone_settings": {"width": 4}}
UPRIGHT = AugmentationSettings(spatial=SpatialSettings(rotation_degrees=30.0))
STILL = AugmentationSettings(spatial=SpatialSettings(mirror=0.0, deform=0.0))


def task(axes: Any = ("row", "column"), classes: int = 3, **changes: Any) -> SegmentationTask:
    torch.manual_seed(0)
    settings = FinetuneSettings(**(SMALL | changes))
    return SegmentationTask(build_segmenter(settings, unet.PLUGIN, 1, classes), settings, axes)


def batch(slices: int = 2, side: int = 32, step: int = 0) -> Batch:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    labels = torch.zeros(slices, side, side, dtype=torch.long)
    for number in range(slices):
        distance = torch.hypot(y - 14.0 - number, x - 15.0 + number)
        labels[number][distance < 10] = 1
        labels[number][distance < 5] = 2
    noise = torch.randn(slices, 1, side, side, generator=torch.Generator().manual_seed(2))
    return Batch(
        labels[:, None] - 0.5 + 0.1 * noise,
        torch.ones(slices),
        SampleRng(0, step, torch.arange(slices)),
        labels,
    )


@pytest.mark.parametrize(
    ("classes", "plane", "axes"),
    [
        (("background", "liver", "spleen"), "axial", ("row", "column")),
        (("background", "left kidney", "liver"), "axial", ("row",)),
        (("background", "Kidney_R"), "axial", ("row",)),
        (("background", "kidney-l"), "coronal", ("row",)),
        (("background", "right lung"), "sagittal", ("row", "column")),
        (("background", "RV", "MYO", "LV"), "axial", ("row", "column")),
        (("background", "liver", "bladder", "cleft"), "axial", ("row", "column")),
    ],
)
def test_axes_that_would_swap_left_and_right_are_not_mirrored(
    classes: tuple[str, ...], plane: str, axes: tuple
) -> None:
    assert (
        mirror_axes(FinetuneSettings(augmentation=UPRIGHT), classes, ANATOMICAL_AXES[plane]) == axes
    )


VOLUMES: dict[str, Any] = {"dims": 3, "training": {"size": (32, 64, 64)}}
THIN: dict[str, Any] = {"dims": 3, "training": {"size": (8, 64, 64)}}
SIDED = ("background", "left kidney", "right kidney")


@pytest.mark.parametrize(
    ("classes", "plane", "axes"),
    [
        (("background", "liver", "spleen"), "axial", ("slice", "row", "column")),
        (("background", "RV", "MYO", "LV"), "sagittal", ("slice", "row", "column")),
        (SIDED, "axial", ("slice", "row")),
        (SIDED, "coronal", ("slice", "row")),
        (SIDED, "sagittal", ("row", "column")),
    ],
)
def test_of_a_volume_with_sides_only_the_left_right_axis_is_not_mirrored(
    classes: tuple[str, ...], plane: Plane, axes: tuple[ArrayAxis, ...]
) -> None:
    settings = FinetuneSettings(augmentation=UPRIGHT, **VOLUMES)
    assert mirror_axes(settings, classes, ANATOMICAL_AXES[plane]) == axes


@pytest.mark.parametrize(
    ("rotation", "tilt", "patch", "plane", "axes"),
    [
        (180.0, 30.0, VOLUMES, "axial", ("slice",)),
        (180.0, 30.0, VOLUMES, "coronal", ("slice",)),
        (180.0, 30.0, VOLUMES, "sagittal", ("row", "column")),
        (30.0, 180.0, VOLUMES, "axial", ("row",)),
        (30.0, 180.0, VOLUMES, "sagittal", ()),
        (180.0, 180.0, VOLUMES, "axial", ()),
        (180.0, 180.0, THIN, "axial", ("slice",)),
        (180.0, 180.0, THIN, "sagittal", ("row", "column")),
    ],
)
def test_half_turns_take_mirrors_from_volumes_with_sides(
    rotation: float, tilt: float, patch: Any, plane: Plane, axes: tuple[ArrayAxis, ...]
) -> None:
    """A half turn joins the two axes of its plane; thin patches are turned in plane alone."""
    spatial = SpatialSettings(rotation_degrees=rotation, tilt_degrees=tilt)
    settings = FinetuneSettings(augmentation=AugmentationSettings(spatial=spatial), **patch)
    assert mirror_axes(settings, SIDED, ANATOMICAL_AXES[plane]) == axes


def test_a_mirrored_row_and_a_half_turn_are_a_mirrored_column() -> None:
    turning = AugmentationSettings(spatial=SpatialSettings(rotation_degrees=180.0))
    classes = ("background", "left kidney", "right kidney")
    assert (
        mirror_axes(FinetuneSettings(augmentation=turning), classes, ANATOMICAL_AXES["axial"]) == ()
    )
    assert mirror_axes(FinetuneSettings(augmentation=STILL), classes, ANATOMICAL_AXES["axial"]) == (
        "row",
    )
    always = AugmentationSettings(
        spatial=SpatialSettings(
            mirror=1.0,
            deform=1.0,
            rotation_degrees=180.0,
            scale=(1.0, 1.0),
            elastic_alpha=(0.0, 0.0),
        )
    )
    left, right = (
        torch.zeros(64, 33, 33, dtype=torch.long),
        torch.zeros(64, 33, 33, dtype=torch.long),
    )
    left[:, 4:9, 4:12], right[:, 4:9, 21:29] = 1, 1
    swapped = 0.0
    for step in range(20):
        both = Batch(
            torch.zeros(64, 1, 33, 33), torch.ones(64), SampleRng(0, step, torch.arange(64)), left
        )
        moved = task(("row",), augmentation=always).augment(both)[1]
        swapped = max(swapped, ((moved * right).sum((1, 2)) / right.sum((1, 2))).max().item())
    assert swapped > 0.8, "the left class on the right class's place"


def test_mirror_axes_as_set() -> None:
    settings = FinetuneSettings(mirror_axes=("column",))
    assert mirror_axes(settings, ("background", "left kidney"), ANATOMICAL_AXES["axial"]) == (
        "column",
    )
    assert (
        mirror_axes(
            FinetuneSettings(mirror_axes=()), ("background", "liver"), ANATOMICAL_AXES["axial"]
        )
        == ()
    )


@pytest.mark.parametrize(
    ("plane", "axes"),
    [
        ("axial", ("column", "row", "slice")),
        ("coronal", ("column", "slice", "row")),
        ("sagittal", ("slice", "column", "row")),
    ],
)
def test_mirror_axes_by_the_names_of_the_anatomy(plane: Plane, axes: tuple[ArrayAxis, ...]) -> None:
    names = ("left-right", "anterior-posterior", "inferior-superior")
    for name, axis in zip(names, axes, strict=True):
        settings = FinetuneSettings(mirror_axes=(name,), **VOLUMES)
        assert mirror_axes(settings, SIDED, ANATOMICAL_AXES[plane]) == (axis,)
        assert ANATOMICAL_AXES[plane][AXES.index(axis)] == name
    twice = FinetuneSettings(mirror_axes=("row", *names), **VOLUMES)
    assert mirror_axes(twice, SIDED, ANATOMICAL_AXES[plane]) == (
        "row",
        *(axis for axis in axes if axis != "row"),
    )


@pytest.mark.parametrize(
    ("name", "plane"),
    [("slice", "axial"), ("inferior-superior", "axial"), ("left-right", "sagittal")],
)
def test_an_axis_that_a_slice_lacks_is_no_mirror_axis(name: Any, plane: Plane) -> None:
    with pytest.raises(MaclError, match=f"mirror_axes names {name}.*these slices"):
        mirror_axes(FinetuneSettings(mirror_axes=("row", name)), SIDED, ANATOMICAL_AXES[plane])
    assert mirror_axes(
        FinetuneSettings(mirror_axes=(name,), **VOLUMES), SIDED, ANATOMICAL_AXES[plane]
    ) == ("slice",)


@pytest.mark.parametrize("axes", [(), ("row",), ("column",), ("row", "column")])
def test_augmentation_mirrors_the_axes_it_may(axes: tuple[str, ...]) -> None:
    always = AugmentationSettings(spatial=SpatialSettings(mirror=1.0, deform=0.0))
    given = batch()
    images, labels = task(axes, augmentation=always).augment(given)
    dimensions = [{"row": -2, "column": -1}[axis] for axis in axes]
    assert torch.equal(labels, given.labels.flip(dimensions))
    torch.testing.assert_close(images, given.images.flip(dimensions), rtol=0, atol=1e-4)


@pytest.mark.parametrize("axes", [(), ("slice",), ("slice", "column"), AXES])
def test_augmentation_of_volumes_mirrors_the_axes_it_may(axes: tuple[ArrayAxis, ...]) -> None:
    always = AugmentationSettings(spatial=SpatialSettings(mirror=1.0, deform=0.0))
    images, labels = batch(8).images, batch(8).labels
    volumes = Batch(  # one person's slices, stacked
        images.movedim(0, 1)[None], torch.ones(1, 3), SampleRng(0, 0, torch.arange(1)), labels[None]
    )
    moved, moved_labels = task(axes, augmentation=always).augment(volumes)
    dimensions = [AXES.index(axis) - 3 for axis in axes]
    assert torch.equal(moved_labels, volumes.labels.flip(dimensions))
    torch.testing.assert_close(moved, volumes.images.flip(dimensions), rtol=0, atol=1e-4)


def test_intensity_changes_leave_the_labels() -> None:
    changes = AugmentationSettings(
        spatial=STILL.spatial, intensity=IntensitySettings(brightness=1, noise=1)
    )
    images, labels = task(augmentation=changes).augment(batch())
    assert torch.equal(labels, batch().labels)
    assert not torch.allclose(images, batch().images, atol=0.01)


@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy_dice"])
def test_the_loss_is_what_the_settings_say(loss: str) -> None:
    one = task(loss=loss, augmentation=STILL)
    step = one.step(batch())
    one.segmenter.train()
    logits = one.segmenter(one.augment(batch())[0])
    cross_entropy, dice = F.cross_entropy(logits, batch().labels), soft_dice(logits, batch().labels)
    torch.testing.assert_close(
        step.loss, cross_entropy + (dice if loss == "cross_entropy_dice" else 0)
    )
    torch.testing.assert_close(step.logged["loss_cross_entropy"], cross_entropy.detach())
    assert ("loss_dice" in step.logged) == (loss == "cross_entropy_dice")


@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy_dice"])
def test_deep_supervision_compares_every_scale(loss: str) -> None:
    """Weights 1, 1/2, 1/4, 1/8 of four scales, divided by their sum; labels from the middle of
    every block."""
    one = task(loss=loss, augmentation=STILL, deep_supervision=True)
    step = one.step(batch())
    scales = one.segmenter.logits_by_scale(one.augment(batch())[0])
    torch.testing.assert_close(scales[0], one.segmenter(one.augment(batch())[0]))
    expected, deep = torch.zeros(()), torch.zeros(())
    for number, logits in enumerate(scales):
        block = 2**number
        labels = batch().labels[:, block // 2 :: block, block // 2 :: block]
        assert logits.shape == (2, 3, *labels.shape[1:])
        part = F.cross_entropy(logits, labels)
        if loss == "cross_entropy_dice":
            part = part + soft_dice(logits, labels)
        expected = expected + part / block / 1.875
        deep = deep + part / block / 0.875 * (number > 0)
    torch.testing.assert_close(step.loss, expected)
    torch.testing.assert_close(step.logged["loss_deep"], deep.detach())
    step.loss.backward()
    assert all(parameter.grad is not None for parameter in one.parameters())


def test_labels_of_coarser_maps_have_their_own_stride_along_every_axis() -> None:
    labels = torch.arange(3 * 8 * 4).reshape(1, 3, 8, 4)
    assert torch.equal(at_size(labels, (3, 2, 2)), labels[:, :, 2::4, 1::2])
    assert torch.equal(at_size(labels, (3, 8, 4)), labels)


def test_without_deep_supervision_nothing_changes() -> None:
    """The same weights and the same loss, bit for bit, as if it did not exist."""
    off, on = task(), task(deep_supervision=True)
    assert not off.segmenter.has_deep_heads
    own, more = off.segmenter.named_state(), on.segmenter.named_state()
    assert {name for name in more if name not in own} == {
        f"deep_heads.{number}.{kind}" for number in range(3) for kind in ("weight", "bias")
    }
    assert all(torch.equal(tensor, more[name]) for name, tensor in own.items())
    images, labels = off.augment(batch())
    logits = off.segmenter(images)
    expected = F.cross_entropy(logits, labels) + soft_dice(logits, labels)
    assert torch.equal(off.step(batch()).loss, expected)
    assert set(off.step(batch()).logged) == {"loss_cross_entropy", "loss_dice"}


@pytest.mark.parametrize(
    ("backbone", "chosen", "expected"),
    [("unet", None, False), ("unet", True, True), ("nnunet", None, True), ("nnunet", False, False)],
)
def test_deep_supervision_is_the_backbones_choice_unless_set(
    backbone: str, chosen: bool | None, expected: bool
) -> None:
    network = find("models", backbone)
    settings = FinetuneSettings(
        backbone=backbone,
        backbone_settings=SMALL_NETWORKS[backbone, 2],
        deep_supervision=chosen,
        training=TrainingSettings(size=32),
    )
    resolved = resolve_finetuning(settings, network)
    assert resolved.deep_supervision is expected
    assert build_segmenter(resolved, network, 1, 3).has_deep_heads is expected


def test_a_tiny_batch_is_learned_by_heart() -> None:
    one = task(augmentation=STILL, backbone_settings={"width": 8})
    optimiser = torch.optim.AdamW(one.parameters(), lr=1e-2)
    first = one.step(batch()).loss.item()
    for step in range(100):
        optimiser.zero_grad()
        one.step(batch(step=step)).loss.backward()
        optimiser.step()
    assert one.step(batch()).loss.item() < 0.15 * first
    predicted = one.segmenter(batch().images).argmax(1)
    assert (predicted == batch().labels).float().mean() > 0.98


def test_the_names_are_the_backbones() -> None:
    named = task().segmenter.named_state()
    backbone = unet.PLUGIN(unet.Settings(width=4), 1, dims=2).state_dict()
    assert set(named) == {*backbone, "head.weight", "head.bias"}
    assert set(segmenter_weights(task().state_dict())) == set(named)


# ---------------------------------------------------------------- back from disk


def write_run(folder: Path, one: SegmentationTask, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "kind": "finetune", "finished": True, "settings": one.settings.model_dump(mode="json"),
        "seed": 0, "device": "cpu", "versions": {}, "store": "a", "store_checksum": "",
        "reader": "folder", "modality": "MR", "prepared": {}, "channels": ("image",),
        "classes": ("background", "ring", "disc"),
    }  # fmt: skip
    runs.write_record(folder, runs.RunRecord(**(values | changes)))
    checkpoint.write(
        folder / runs.WEIGHTS, segmenter_weights(one.state_dict()), {"kind": "finetune"}
    )
    return folder


def test_a_segmenter_comes_back_from_disk(tmp_path: Path) -> None:
    one = task()
    one.step(batch())
    loaded = load_segmenter(write_run(tmp_path, one), unet.PLUGIN, torch.device("cpu"))
    assert not loaded.training
    images = batch().images
    assert all(
        torch.equal(loaded.named_state()[name], own)
        for name, own in one.segmenter.named_state().items()
    )
    torch.testing.assert_close(loaded(images), one.segmenter.eval()(images))


def test_a_segmenter_with_deep_supervision_comes_back_from_disk(tmp_path: Path) -> None:
    one = task(deep_supervision=True)
    loaded = load_segmenter(write_run(tmp_path, one), unet.PLUGIN, torch.device("cpu"))
    images = batch().images
    torch.testing.assert_close(loaded(images), one.segmenter.eval()(images))
    assert loaded.has_deep_heads


def test_runs_that_cannot_segment(tmp_path: Path) -> None:
    device = torch.device("cpu")
    with pytest.raises(MaclError, match="pre-training run, which has no classes"):
        load_segmenter(write_run(tmp_path / "a", task(), kind="pretrain"), unet.PLUGIN, device)
    with pytest.raises(MaclError, match="is not finished"):
        load_segmenter(write_run(tmp_path / "b", task(), finished=False), unet.PLUGIN, device)
    with pytest.raises(MaclError, match="does not fit the settings"):
        load_segmenter(
            write_run(tmp_path / "c", task(), classes=("background", "ring")), unet.PLUGIN, device
        )
    with pytest.raises(MaclError, match="does not fit the settings"):
        load_segmenter(
            write_run(tmp_path / "d", task(), channels=("t1", "t2")), unet.PLUGIN, device
        )
    run = write_run(tmp_path / "e", task())
    (run / runs.WEIGHTS).unlink()
    with pytest.raises(MaclError, match="There is no"):
        load_segmenter(run, unet.PLUGIN, device)
    with pytest.raises(MaclError, match="does not exist"):
        load_segmenter(tmp_path / "f", unet.PLUGIN, device)
