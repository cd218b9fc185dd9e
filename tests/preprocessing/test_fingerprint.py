"""The fingerprint of a data set: nnU-Net's target spacing, intensities, and classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fakes import acdc
from fakes.scans import affine, anatomy, write_itk, write_nifti
from macl.plugins import reader
from macl.preprocessing.findings import CaseFinding, examine_all, examine_case
from macl.preprocessing.fingerprint import (
    CaseFingerprint,
    DatasetFingerprint,
    fingerprint_source,
    fingerprint_store,
)
from macl.preprocessing.source import SourceScan, scan_source
from macl.stages.prepare import prepare

Spacing = tuple[float, float, float]


def of_cases(cases: list[tuple[Spacing | None, tuple[int, int, int]]]) -> DatasetFingerprint:
    """The fingerprint of cases of these spacings and sizes, both (z, y, x)."""
    return DatasetFingerprint(
        reader="folder",
        modality="MR",
        channels=("image",),
        classes=(),
        cases=tuple(
            CaseFingerprint(f"case{number}", f"patient{number}", False, "axial", size, spacing_mm)
            for number, (spacing_mm, size) in enumerate(cases)
        ),
        refused={},
        voxels_read=False,
    )


def scanned(folder: Path, layout: str = "folder") -> tuple[SourceScan, list[CaseFinding]]:
    """A source, and what reading its cases finds."""
    scan = scan_source(folder, reader(layout).read(folder))
    examine = partial(
        examine_case,
        channels=len(scan.source.channels),
        declared=frozenset(scan.source.classes),
    )
    return scan, examine_all(examine, scan.source.cases, 1, "inspect")


SHORT = (10, 200, 200)


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        # The median of each axis.
        (
            [((3.0, 1.0, 0.8), SHORT), ((2.0, 1.2, 0.9), SHORT), ((9.0, 2.0, 1.0), SHORT)],
            (3, 1.2, 0.9),
        ),
        # One axis is much coarser and shorter: the 10th percentile of its spacings.
        ([((z, 1.0, 1.0), SHORT) for z in (10.0, 9.0, 8.0, 7.0, 6.0, 5.0)], (5.5, 1, 1)),
        # Much coarser, but not much shorter.
        ([((z, 1.0, 1.0), (100, 200, 200)) for z in (10.0, 8.0, 6.0)], (8, 1, 1)),
        # Never finer than the other axes.
        ([((z, 1.0, 1.2), SHORT) for z in (0.5, 6.0, 6.0)], (1.6, 1, 1.2)),
        ([((z, 1.0, 1.2), SHORT) for z in (0.5, 0.5, 6.0, 6.0, 6.0)], (1.2, 1, 1.2)),
        # Cases without a spacing do not count.
        ([((2.0, 1.0, 1.0), SHORT), (None, SHORT), (None, SHORT)], (2, 1, 1)),
    ],
)  # fmt: skip
def test_the_target_spacing_is_that_of_nnunet(
    cases: list[tuple[Spacing | None, tuple[int, int, int]]], expected: Spacing
) -> None:
    assert of_cases(cases).target_spacing_mm() == pytest.approx(expected)


def test_without_a_spacing_there_is_no_target() -> None:
    assert of_cases([(None, SHORT)]).target_spacing_mm() is None


def test_intensities_are_in_the_scans_values(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(100, 20, (12, 40, 40)).round().astype(np.int16)
    scaled = nibabel.Nifti1Image(image.T, affine())
    scaled.header.set_slope_inter(2.0, -1024.0)
    scaled.header.set_data_dtype(np.int16)
    (tmp_path / "data").mkdir()
    nibabel.save(scaled, tmp_path / "data/a.nii.gz")
    values = np.asarray(nibabel.load(tmp_path / "data/a.nii.gz").dataobj)
    scan, findings = scanned(tmp_path / "data")
    fingerprint = fingerprint_source(scan, findings=findings)
    assert fingerprint.intensities is not None
    (channel,) = fingerprint.intensities
    assert (channel.minimum, channel.maximum) == (values.min(), values.max())
    expected = (*np.percentile(values, (0.5, 50, 99.5)), values.mean(), values.std())
    measured = (channel.percentile_0_5, channel.median, channel.percentile_99_5)
    measured = (*measured, channel.mean, channel.deviation)
    assert measured == pytest.approx(expected, abs=0.2 * values.std())


def test_headers_alone_give_sizes_and_spacings(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", anatomy(0)[0], affine((1.0, 1.5, 4.0)))
    write_itk(tmp_path / "b.png", anatomy(0)[0][0].astype(np.uint8))
    scan = scan_source(tmp_path, reader("folder").read(tmp_path))
    fingerprint = fingerprint_source(scan)
    assert [case.size for case in fingerprint.cases] == [(6, 20, 24), (1, 20, 24)]
    assert [case.spacing_mm for case in fingerprint.cases] == [
        pytest.approx((4.0, 1.5, 1.0)),
        None,
    ]
    assert (fingerprint.class_voxels, fingerprint.intensities) == (None, None)
    coronal = fingerprint_source(scan, "coronal").cases[0]
    assert (coronal.plane, coronal.size) == ("coronal", (20, 6, 24))


def test_a_source_and_the_store_made_of_it_have_the_same_fingerprint(tmp_path: Path) -> None:
    acdc.write(tmp_path / "data", patients=2)
    source = fingerprint_source(*_with_findings(tmp_path / "data"))
    store = fingerprint_store(prepare(tmp_path / "data", tmp_path / "store", workers=1))
    for name in ("modality", "channels", "classes", "class_voxels", "class_cases", "spacings_mm"):
        assert getattr(source, name) == getattr(store, name), name
    for name in ("name", "patient", "labelled", "plane", "size", "spacing_mm", "class_voxels"):
        assert [getattr(case, name) for case in source.cases] == [
            getattr(case, name) for case in store.cases
        ], name


def _with_findings(folder: Path):
    scan, findings = scanned(folder, "acdc")
    return scan, scan.source.plane, findings
