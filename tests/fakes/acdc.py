"""ACDC in miniature: two labelled frames a patient, whole cine series, and texts beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fakes.scans import anatomy, write_nifti


def write(folder: Path, patients: int = 2) -> Path:
    """Write `patients` folders, the frames 01 and 12 each."""
    for number in range(1, patients + 1):
        name = f"patient{number:03d}"
        for frame in (1, 12):
            image, label = anatomy(100 * number + frame)
            write_nifti(folder / name / f"{name}_frame{frame:02d}.nii.gz", image)
            write_nifti(folder / name / f"{name}_frame{frame:02d}_gt.nii.gz", label)
        write_nifti(folder / name / f"{name}_4d.nii.gz", np.stack([image, image]))
        (folder / name / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: NOR\n")
        (folder / name / "MANDATORY_CITATION.md").write_text("Bernard et al.")
    return folder
