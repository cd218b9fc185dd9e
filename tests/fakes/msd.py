"""A task of the Medical Segmentation Decathlon in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fakes.scans import anatomy, write_nifti


def write(folder: Path, cases: int = 3, test: int = 2, modality: tuple[str, ...] = ("MRI",)) -> Path:
    """Write labelled training and unlabelled test scans; several modalities share one 4D file, as in its Task01."""
    for number in range(1, cases + test + 1):
        image, label = anatomy(number)
        scan = image if len(modality) == 1 else np.stack([image + 10 * index for index in range(len(modality))])
        part = "Tr" if number <= cases else "Ts"
        write_nifti(folder / f"images{part}" / f"toy_{number:03d}.nii.gz", scan)
        if number <= cases:
            write_nifti(folder / "labelsTr" / f"toy_{number:03d}.nii.gz", label)
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "name": "Toy",
                "tensorImageSize": "3D" if len(modality) == 1 else "4D",
                "modality": {str(index): name for index, name in enumerate(modality)},
                "labels": {"0": "background", "1": "Ring", "2": "Disc"},
                "numTraining": cases,
                "numTest": test,
                "training": [
                    {"image": f"./imagesTr/toy_{n:03d}.nii.gz", "label": f"./labelsTr/toy_{n:03d}.nii.gz"}
                    for n in range(cases, 0, -1)
                ],
                "test": [f"./imagesTs/toy_{n:03d}.nii.gz" for n in range(cases + 1, cases + test + 1)],
            }
        )
    )
    return folder
