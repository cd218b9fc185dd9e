"""AMOS 2022 in miniature: numbers tell CT from MR; the validation part has labels."""

from __future__ import annotations

import json
from pathlib import Path

from fakes.structures import Truth, structures, write_oriented
from macl.readers.amos import ORGANS

PARTS = {"Tr": (1, 4, 507), "Va": (8, 555), "Ts": (2, 578)}


def write(folder: Path) -> dict[str, Truth]:
    """Write CT and MR into every part, and a description that calls all of it CT, as AMOS's does.

    The truths are those of CT.
    """
    truths: dict[str, Truth] = {}
    listed: dict[str, list] = {part: [] for part in PARTS}
    for part, ids in PARTS.items():
        for number in ids:
            name = f"amos_{number:04d}"
            image, label = structures(number, 15)
            write_oriented(folder / f"images{part}/{name}.nii.gz", image, "LAS", (0.7, 0.7, 5.0))
            entry = {"image": f"./images{part}/{name}.nii.gz"}
            if part != "Ts":
                write_oriented(
                    folder / f"labels{part}/{name}.nii.gz", label, "LAS", (0.7, 0.7, 5.0)
                )
                entry["label"] = f"./labels{part}/{name}.nii.gz"
            listed[part].append(entry)
            if number <= 500:
                truths[name] = Truth(name, image[None], label if part != "Ts" else None)
    description = {
        "name": "AMOS",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background"}
        | {str(value): organ for value, organ in enumerate(ORGANS, start=1)},
        "training": listed["Tr"],
        "validation": listed["Va"],
        "test": listed["Ts"],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return truths
