"""CHD in miniature: pairs side by side, values above 7 in the labels, and the list of scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fakes.structures import Truth, structures, write_oriented


def write(folder: Path) -> dict[str, Truth]:
    """Write three scans in NIfTI's usual orientation; the second's label holds 9 and 14 too."""
    truths: dict[str, Truth] = {}
    for number in (1001, 1003, 1178):
        name = f"ct_{number}"
        image, label = structures(number, 7)
        written = label.copy()
        if number == 1003:
            written[0, 0, :4] = (9, 14, 14, 9)
        write_oriented(folder / f"{name}_image.nii.gz", image - 1000, "RAS")
        write_oriented(folder / f"{name}_label.nii.gz", written.astype(np.int16), "RAS")
        truths[name] = Truth(name, image[None] - 1000, label)
    (folder / "imageCHD_dataset_info.xlsx").write_bytes(b"PK")
    return truths
