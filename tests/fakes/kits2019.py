"""KiTS 2019's repository in miniature: slices along the first axis, four times as far apart as pixels."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from fakes.structures import Truth, structures

SPACING = {"case_00000": (3.0, 0.75, 0.75), "case_00001": (0.5, 0.75, 0.75), "case_00210": (3.0, 0.75, 0.75)}


def write(folder: Path) -> dict[str, Truth]:
    """Write two labelled cases, one of thin slices, and one without label, below `data` as in the repository."""
    truths: dict[str, Truth] = {}
    for number, (name, spacing) in enumerate(SPACING.items()):
        image, label = structures(number, 2)
        place = folder / "data" / name
        place.mkdir(parents=True)
        matrix = np.diag([*spacing, 1.0])
        nibabel.Nifti1Image(image.astype(np.float32), matrix).to_filename(place / "imaging.nii.gz")
        labelled = name != "case_00210"
        if labelled:
            nibabel.Nifti1Image(label, matrix).to_filename(place / "segmentation.nii.gz")
        # By the header, the axes run to the right, to the front and up.
        turned = [np.flip(array.transpose(0, 2, 1), (0, 2)) for array in (image, label)]
        truths[name] = Truth(name, turned[0][None].astype(np.float32), turned[1] if labelled else None)
    (folder / "data/kits.json").write_text("[]")
    (folder / "README.md").write_text("# KiTS19\n")
    return truths
