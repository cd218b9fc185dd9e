"""Sunnybrook as PNG pairs in miniature: grey as RGB, 20 numbers per slice for the frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fakes.scans import write_itk
from fakes.structures import Truth, structures

PATIENTS = {"SC-HF-I-01": "Train/{}/Sunnybrook_Part1", "SC-N-40": "Test/{}/Sunnybrook_Part3"}


def write(folder: Path) -> dict[str, Truth]:
    """Write two patients, two frames each; the second frame shows fewer slices."""
    truths: dict[str, Truth] = {}
    for number, (patient, subfolder) in enumerate(PATIENTS.items()):
        for frame, slices in ((20, range(1, 5)), (8, range(2, 5))):
            image, label = structures(10 * number + frame, 1, (len(slices), 20, 24))
            image = image.astype(np.uint8)
            for index, position in enumerate(slices):
                name = f"{patient}-IM-0001-{20 * position + frame:04d}.dcm.png"
                for kind, picture in (("Images", image[index]), ("Labels", label[index] * 255)):
                    write_itk(
                        folder / subfolder.format(kind) / name,
                        np.repeat(picture[..., None], 3, axis=-1),
                    )
            truths[f"{patient}_frame{frame:02d}"] = Truth(patient, image[None], label)
    return truths
