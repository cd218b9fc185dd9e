"""nnU-Net's raw layout, version 2, in miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fakes.scans import anatomy, write_itk, write_nifti

LABELS = {"background": 0, "ring": 1, "disc": 2}


def write(
    folder: Path,
    cases: int = 3,
    test: int = 1,
    channels: tuple[str, ...] = ("CT",),
    ending: str = ".nii.gz",
    **more: Any,
) -> Path:
    """Write `cases` labelled and `test` unlabelled cases; `more` goes into `dataset.json`."""
    put = write_nifti if ending.startswith(".nii") else write_itk
    for number in range(cases + test):
        part = "Tr" if number < cases else "Ts"
        image, label = anatomy(number)
        for channel in range(len(channels)):
            put(
                folder / f"images{part}" / f"toy_{number:03d}_{channel:04d}{ending}",
                image + 10 * channel,
            )
        if number < cases:
            put(folder / "labelsTr" / f"toy_{number:03d}{ending}", label)
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ending,
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder
