"""Tasks of the Medical Segmentation Decathlon in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fakes.scans import anatomy, write_nifti

TASKS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "Task01_BrainTumour": (
        "BRATS",
        ("FLAIR", "T1w", "t1gd", "T2w"),
        ("edema", "non-enhancing tumor", "enhancing tumour"),
    ),
    "Task02_Heart": ("la", ("MRI",), ("left atrium",)),
    "Task03_Liver": ("liver", ("CT",), ("liver", "cancer")),
    "Task04_Hippocampus": ("hippocampus", ("MRI",), ("Anterior", "Posterior")),
    "Task05_Prostate": ("prostate", ("T2", "ADC"), ("PZ", "TZ")),
    "Task06_Lung": ("lung", ("CT",), ("cancer",)),
    "Task07_Pancreas": ("pancreas", ("CT",), ("pancreas", "cancer")),
    "Task08_HepaticVessel": ("hepaticvessel", ("CT",), ("Vessel", "Tumour")),
    "Task09_Spleen": ("spleen", ("CT",), ("spleen",)),
    "Task10_Colon": ("colon", ("CT",), ("colon cancer primaries",)),
}  # fmt: skip
"""Task → the stem of its files, its modalities and its classes, as its `dataset.json` has them."""


def write(
    folder: Path,
    cases: int = 3,
    test: int = 2,
    modality: tuple[str, ...] = ("MRI",),
    classes: tuple[str, ...] = ("Ring", "Disc"),
    stem: str = "toy",
) -> Path:
    """Write labelled training and unlabelled test scans, and what macOS leaves beside them.

    Several modalities share one 4D file; labels are floating-point numbers, as Task10's.
    """
    for number in range(1, cases + test + 1):
        image, label = anatomy(number)
        scan = (
            image
            if len(modality) == 1
            else np.stack([image + 10 * index for index in range(len(modality))])
        )
        part, name = "Tr" if number <= cases else "Ts", f"{stem}_{number:03d}.nii.gz"
        write_nifti(folder / f"images{part}" / name, scan)
        (folder / f"images{part}" / f"._{name}").write_bytes(b"Mac OS X")
        if number <= cases:
            write_nifti(folder / "labelsTr" / name, label.clip(max=len(classes)).astype(np.float32))
    described = {
        "name": "Toy",
        "tensorImageSize": "3D" if len(modality) == 1 else "4D",
        "modality": {str(index): name for index, name in enumerate(modality)},
        "labels": {str(value): name for value, name in enumerate(("background", *classes))},
        "numTraining": cases,
        "numTest": test,
        "training": [
            {
                "image": f"./imagesTr/{stem}_{n:03d}.nii.gz",
                "label": f"./labelsTr/{stem}_{n:03d}.nii.gz",
            }
            for n in range(cases, 0, -1)
        ],
        "test": [f"./imagesTs/{stem}_{n:03d}.nii.gz" for n in range(cases + 1, cases + test + 1)],
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder
