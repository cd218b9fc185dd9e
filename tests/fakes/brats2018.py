"""BraTS 2018's training archive in miniature: two grades, four scans and a label per patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fakes.structures import Truth, structures, write_oriented

VALUES = np.array([0, 1, 2, 4], np.uint8)


def write(folder: Path) -> dict[str, Truth]:
    """Write two patients of high and one of low grade at 1 mm; the label values are 1, 2 and 4."""
    truths: dict[str, Truth] = {}
    for number, (grade, name) in enumerate(
        [
            ("HGG", "Brats18_2013_2_1"),
            ("HGG", "Brats18_CBICA_AAB_1"),
            ("LGG", "Brats18_TCIA09_141_1"),
        ]
    ):
        image, label = structures(number, 3)
        patient_folder = folder / "MICCAI_BraTS_2018_Data_Training" / grade / name
        channels = [image + 7 * index for index in range(4)]
        for channel, suffix in zip(channels, ("t1", "t1ce", "t2", "flair"), strict=True):
            write_oriented(
                patient_folder / f"{name}_{suffix}.nii.gz", channel, "LPS", (1.0, 1.0, 1.0)
            )
        write_oriented(
            patient_folder / f"{name}_seg.nii.gz",
            VALUES[label],
            "LPS",
            (1.0, 1.0, 1.0),
            nudge_mm=0.004,
        )
        truths[name] = Truth(name, np.stack(channels), label)
    (folder / "MICCAI_BraTS_2018_Data_Training/survival_data.csv").write_text(
        "BraTS18ID,Age,Survival\n"
    )
    return truths
