"""MM-WHS 2017 in miniature: CT and MR in different orientations; MR labels hold 421 for 420."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fakes.structures import Truth, structures, write_oriented

VALUES = np.array([0, 205, 420, 500, 550, 600, 820, 850], np.int16)


def write(folder: Path) -> dict[str, Truth]:
    """Write two labelled scans and a test scan of CT and of MR; the truths are those of CT."""
    truths: dict[str, Truth] = {}
    for modality in ("ct", "mr"):
        for part, numbers in (("train", (1001, 1002)), ("test", (2001,))):
            for number in numbers:
                name = f"{modality}_{part}_{number}"
                part_folder = folder / f"{modality}_{part}"
                image, label = structures(number, 7)
                write_oriented(
                    part_folder / f"{name}_image.nii.gz",
                    image,
                    "LAS" if modality == "ct" else "RIP",
                    (0.5, 0.5, 0.6),
                )
                if part == "train":
                    values = VALUES[label]
                    if modality == "mr":
                        values[2][values[2] == 420] = 421
                    write_oriented(
                        part_folder / f"{name}_label.nii.gz",
                        values,
                        "LAS" if modality == "ct" else "RIP",
                        (0.5, 0.5, 0.6),
                    )
                if modality == "ct":
                    truths[name] = Truth(name, image[None], label if part == "train" else None)
    return truths
