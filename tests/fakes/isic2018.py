"""ISIC 2018's task 1 in miniature: JPEG pictures of different sizes, PNG masks of 0 and 255."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK

from fakes.scans import write_itk
from fakes.structures import Truth

FOLDERS = {"Training": (0, 1, 13), "Validation": (12255,)}


def write(folder: Path) -> dict[str, Truth]:
    """Write three training pictures with masks and a validation picture without.

    The truths are what a JPEG decoder reads.
    """
    truths: dict[str, Truth] = {}
    for part, numbers in FOLDERS.items():
        pictures, masks = (
            folder / f"ISIC2018_Task1-2_{part}_Input",
            folder / f"ISIC2018_Task1_{part}_GroundTruth",
        )
        pictures.mkdir(parents=True)
        (pictures / "ATTRIBUTION.txt").write_text("see the archive")
        for number in numbers:
            name = f"ISIC_{number:07d}"
            rows, columns = 24 + number % 3, 32
            y, x = np.mgrid[:rows, :columns]
            label = ((y - 9) ** 2 + (x - 20) ** 2 < 30).astype(np.uint8)
            colours = np.stack(
                [180 - 90 * label, 120 + y - 40 * label, 60 + 3 * x], axis=-1
            ).astype(np.uint8)
            file = pictures / f"{name}.jpg"
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colours, isVector=True), str(file))
            decoded = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
            if part == "Training":
                write_itk(masks / f"{name}_segmentation.png", label * 255)
            truth = label[None] if part == "Training" else None
            truths[name] = Truth(name, np.moveaxis(decoded, -1, 0)[:, None], truth)
    return truths
