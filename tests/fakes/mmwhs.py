"""MM-WHS 2017 in miniature: CT and MR in different orientations; MR labels hold 421 for 420."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fakes.structures import Truth, structures, write_oriented

VALUES = np.array([0, 205, 420, 500, 550, 600, 820, 850], np.int16)
AXES = {"ct": "LAS", "mr": "RIP"}
SPACING_MM = (0.5, 0.5, 0.6)


def write(folder: Path) -> dict[str, Truth]:
    """Write two labelled scans and a test scan of CT and of MR; the truths are those of CT."""
    truths: dict[str, Truth] = {}
    for modality, axes in AXES.items():
        for number in (1001, 1002, 2001):
            part = "train" if number < 2000 else "test"
            name = f"{modality}_{part}_{number}"
            stem = folder / f"{modality}_{part}" / name
            image, label = structures(number, 7)
            write_oriented(Path(f"{stem}_image.nii.gz"), image, axes, SPACING_MM)
            if part == "train":
                values = VALUES[label]
                if modality == "mr":
                    values[2][values[2] == 420] = 421
                write_oriented(Path(f"{stem}_label.nii.gz"), values, axes, SPACING_MM)
            if modality == "ct":
                truths[name] = Truth(name, image[None], label if part == "train" else None)
    return truths
