"""KiTS 2019's repository in miniature: the first array axis runs from the head down, as there."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from fakes.structures import Truth, structures

SPACING = {
    "case_00000": (3.0, 0.75, 0.75),
    "case_00001": (0.5, 0.75, 0.75),
    "case_00210": (3.0, 0.75, 0.75),
}


def write(folder: Path) -> dict[str, Truth]:
    """Write two labelled cases, one of them with thin slices, and one without label."""
    truths: dict[str, Truth] = {}
    for number, (name, spacing) in enumerate(SPACING.items()):
        image, label = structures(number, 2)
        case_folder = folder / "data" / name
        case_folder.mkdir(parents=True)
        image = image.astype(np.float32)
        # The axes run down, to the back and to the left.
        matrix = np.diag([0.0, 0.0, 0.0, 1.0])
        matrix[2, 0], matrix[1, 1], matrix[0, 2] = (-step for step in spacing)
        nibabel.Nifti1Image(image[::-1], matrix).to_filename(case_folder / "imaging.nii.gz")
        labelled = name != "case_00210"
        if labelled:
            nibabel.Nifti1Image(label[::-1], matrix).to_filename(
                case_folder / "segmentation.nii.gz"
            )
        truths[name] = Truth(name, image[None], label if labelled else None)
    (folder / "data/kits.json").write_text("[]")
    (folder / "README.md").write_text("# KiTS19\n")
    return truths
