"""A finished run in memory: any kind of scan → the mask that `predict` would write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

import macl
from fakes.threshold_run import LABEL_VALUES, known_case, write_threshold_run
from macl.config.settings import PrepareSettings
from macl.stages.load import SegmentationModel

CLASSES = dict(zip(LABEL_VALUES, ("background", "ring", "core"), strict=True))
SPACING = (0.7, 0.9, 5.0)
COS, SIN = np.cos(0.4), np.sin(0.4)
OBLIQUE = (COS, -SIN, 0.0, SIN, COS, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture(params=[2, 3], ids=["2D", "3D"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentationModel:
    size = {2: 32, 3: (8, 32, 16)}[request.param]
    run = write_threshold_run(tmp_path / "run", dims=request.param, size=size)
    return macl.load(str(run), device="cpu")


@pytest.fixture
def slices(tmp_path: Path) -> SegmentationModel:
    """A segmenter of slices."""
    return macl.load(write_threshold_run(tmp_path / "run"), device="cpu")


def image_of(array: np.ndarray) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin((-31.5, 12.25, 104.0))
    image.SetDirection(OBLIQUE)
    return image


def test_a_file_an_image_and_an_array_give_the_right_mask(
    model: SegmentationModel, tmp_path: Path
) -> None:
    array, label = known_case((7, 40, 50))
    image = image_of(array)
    SimpleITK.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    masks = {
        "file": model.predict(tmp_path / "scan.nii.gz"),
        "text": model.predict(str(tmp_path / "scan.nii.gz")),
        "image": model.predict(image),
        "array": model.predict(array, spacing_mm=SPACING[::-1]),
        "no spacing": model.predict(array),
        "float16": model.predict(array.astype(np.float16)),
    }
    for kind, mask in masks.items():
        np.testing.assert_array_equal(mask.array, label, err_msg=kind)
        assert mask.classes == CLASSES
        assert mask.geometry.size == (50, 40, 7)
    for kind in ("file", "image", "array"):
        np.testing.assert_allclose(masks[kind].geometry.spacing, SPACING, rtol=1e-6)
    assert not masks["no spacing"].geometry.spacing_known


def test_the_mask_is_that_of_the_command(model: SegmentationModel, tmp_path: Path) -> None:
    array, _ = known_case((6, 33, 41))
    SimpleITK.WriteImage(image_of(array), str(tmp_path / "scan.nii.gz"))
    (written,) = macl.predict([tmp_path / "run", tmp_path / "scan.nii.gz"], tmp_path / "masks")
    saved = model.predict(tmp_path / "scan.nii.gz").save(tmp_path / "mine.nii.gz")
    assert saved.read_bytes()[10:] == written.read_bytes()[10:]  # but the time in gzip's header


def test_several_runs_are_averaged_as_by_the_command(tmp_path: Path) -> None:
    """One in 2D, one in 3D that is unsure, whose probabilities are the mean of theirs."""
    array, _ = known_case((6, 33, 41))
    SimpleITK.WriteImage(image_of(array), str(tmp_path / "scan.nii.gz"))
    runs = [write_threshold_run(tmp_path / "slices")]
    runs.append(write_threshold_run(tmp_path / "volumes", dims=3, size=(8, 32, 16)))
    scan = tmp_path / "scan.nii.gz"
    together = macl.load(runs, device="cpu")
    (written,) = macl.predict([*runs, scan], tmp_path / "masks")
    mask = together.predict(scan, probabilities=True)
    assert mask.save(tmp_path / "mine.nii.gz").read_bytes()[10:] == written.read_bytes()[10:]
    alone = [macl.load(run, device="cpu").predict(scan, probabilities=True) for run in runs]
    assert mask.probabilities is not None
    mean = np.mean([each.probabilities for each in alone], axis=0)
    np.testing.assert_allclose(mask.probabilities, mean, atol=1e-5)
    assert len(together.networks) == 2
    with pytest.raises(macl.MaclError, match="averages 2 networks"):
        _ = together.network


def test_runs_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    runs = [write_threshold_run(tmp_path / "a")]
    other = {"classes": ("background", "liver", "core")}
    runs.append(write_threshold_run(tmp_path / "b", **other))
    with pytest.raises(macl.MaclError, match="differ in their classes"):
        macl.load(runs)
    with pytest.raises(macl.MaclError, match="no run to load"):
        macl.load([])


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_saved_mask_lies_on_the_image(
    slices: SegmentationModel, tmp_path: Path, suffix: str
) -> None:
    array, label = known_case((7, 40, 50))
    path = slices.predict(image_of(array)).save(tmp_path / f"mask{suffix}")
    mask = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(mask), label)
    np.testing.assert_allclose(mask.GetDirection(), OBLIQUE, atol=1e-6)
    np.testing.assert_allclose(mask.GetOrigin(), (-31.5, 12.25, 104.0), rtol=1e-6)
    np.testing.assert_allclose(mask.GetSpacing(), SPACING, rtol=1e-6)


def test_a_single_slice(slices: SegmentationModel, tmp_path: Path) -> None:
    array, label = known_case((1, 45, 61))
    for scan in (array[0], image_of(array)[:, :, 0]):
        mask = slices.predict(scan)
        np.testing.assert_array_equal(mask.array, label)
    assert slices.predict(array[0]).save(tmp_path / "mask.png").is_file()


def test_several_channels_are_given_in_their_order(tmp_path: Path) -> None:
    run = write_threshold_run(tmp_path / "run", channels=("T2", "ADC"))
    model = macl.load(run, device="cpu")
    array, label = known_case((5, 32, 32))
    other = array[::-1].copy()
    for name, channel in (("z", array), ("a", other)):
        SimpleITK.WriteImage(image_of(channel), str(tmp_path / f"{name}.nii.gz"))
    vector = SimpleITK.Compose(image_of(array), image_of(other))
    for scan in ([tmp_path / "z.nii.gz", tmp_path / "a.nii.gz"], np.stack([array, other]), vector):
        np.testing.assert_array_equal(model.predict(scan).array, label)
    with pytest.raises(macl.MaclError, match=r"1 channels, but the model takes 2 \(T2, ADC\)"):
        model.predict(array)


def test_probabilities_add_up_and_decide_the_mask(model: SegmentationModel) -> None:
    array, _ = known_case((7, 40, 50))
    mask = model.predict(array, probabilities=True)
    assert mask.probabilities is not None
    np.testing.assert_allclose(mask.probabilities.sum(axis=0), 1, atol=1e-5)
    best = np.asarray(LABEL_VALUES)[mask.probabilities.argmax(axis=0)]
    np.testing.assert_array_equal(best, mask.array)


def test_the_network_is_a_plain_module(model: SegmentationModel) -> None:
    assert isinstance(model.network, torch.nn.Module)
    assert not model.network.training
    with torch.no_grad():
        logits = model.network(torch.zeros(2, 1, *model.patch))
    assert logits.shape == (2, 3, *model.patch)


def test_what_is_assumed_is_said(
    slices: SegmentationModel, capsys: pytest.CaptureFixture[str]
) -> None:
    array, _ = known_case((7, 40, 50))
    mask = slices.predict(array, spacing_mm=(5, 1, 1))
    (note,) = mask.notes
    assert "upwards, to the back and to the left" in note
    assert note in capsys.readouterr().err
    assert "unknown" in slices.predict(array).notes[0]


def test_what_is_no_scan_is_refused(slices: SegmentationModel, tmp_path: Path) -> None:
    array, _ = known_case((7, 40, 50))
    (tmp_path / "cut.nii.gz").write_bytes(b"\x1f\x8b cut off")
    broken = array.astype(np.float32)
    broken[3, 3, 3] = np.nan
    for scan, options, why in (
        (tmp_path / "none.nii.gz", {}, "missing"),
        (tmp_path / "cut.nii.gz", {}, "cannot be segmented"),
        (broken, {}, "the array cannot be segmented: 1 of its 14000 voxels are NaN"),
        (np.zeros((7, 40, 50)), {}, "constant"),
        (np.zeros((0, 40, 50)), {}, "empty"),
        (array.astype(complex), {}, "real numbers"),
        (array[0, 0], {}, "no scan"),
        (array.tolist(), {}, "cannot be a list"),
        (None, {}, "cannot be a NoneType"),
        (array, {"spacing_mm": (5, 1)}, "takes 3 numbers"),
        (array, {"spacing_mm": (5, 1, 0)}, "takes 3 numbers"),
        (array, {"spacing_mm": 5}, "takes 3 numbers"),
        (image_of(array), {"spacing_mm": (5, 1, 1)}, "say their spacing"),
    ):
        with pytest.raises(macl.MaclError, match=why):
            slices.predict(scan, **options)


def test_a_spacing_is_needed_where_scans_were_resampled(tmp_path: Path) -> None:
    prepared = PrepareSettings(normalisation="zscore", spacing_mm=1.4)
    model = macl.load(write_threshold_run(tmp_path / "run", prepared=prepared), device="cpu")
    array, _ = known_case((5, 40, 40))
    assert model.predict(array, spacing_mm=(5, 0.7, 0.7)).array.shape == (5, 40, 40)
    with pytest.raises(macl.MaclError, match=r"the array cannot be segmented: .*spacing"):
        model.predict(array)


def test_only_a_finished_segmenter_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(macl.MaclError, match="nowhere"):
        macl.load(tmp_path / "nowhere")
    unfinished = write_threshold_run(tmp_path / "unfinished", finished=False)
    with pytest.raises(macl.MaclError, match="not finished"):
        macl.load(unfinished)
    pretrained = write_threshold_run(tmp_path / "pretrained", kind="pretrain")
    with pytest.raises(macl.MaclError, match="pre-training run"):
        macl.load(pretrained)
