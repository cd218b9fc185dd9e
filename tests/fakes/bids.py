"""A BIDS data set in miniature: sessions, runs, two kinds of scans, and labels with a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fakes.structures import Truth, structures, write_oriented

VALUES = np.array([0, 17, 53], np.int16)


def write(folder: Path) -> dict[str, Truth]:
    """Write three T1w scans of two subjects, two of them labelled, and a T2w scan."""
    truths: dict[str, Truth] = {}
    for number, (subfolder, entities) in enumerate(
        [
            ("sub-01/ses-a/anat", "sub-01_ses-a"),
            ("sub-01/ses-b/anat", "sub-01_ses-b_run-2"),
            ("sub-02/anat", "sub-02"),
        ]
    ):
        image, label = structures(number, 2)
        write_oriented(folder / subfolder / f"{entities}_T1w.nii.gz", image, "RSA", (1.0, 1.0, 1.0))
        (folder / subfolder / f"{entities}_T1w.json").write_text("{}")
        labelled = number != 1
        if labelled:
            name = f"{entities}_space-orig_desc-manual_dseg.nii.gz"
            write_oriented(
                folder / "derivatives/manual" / subfolder / name,
                VALUES[label],
                "RSA",
                (1.0, 1.0, 1.0),
            )
        truths[f"{entities}_T1w"] = Truth(entities[:6], image[None], label if labelled else None)
    write_oriented(folder / "sub-02/anat/sub-02_T2w.nii.gz", structures(9, 2)[0])
    table = "index\tname\n17\tLeft-Hippocampus\n53\tRight-Hippocampus\n"
    (folder / "derivatives/manual/desc-manual_dseg.tsv").write_text(table)
    (folder / "dataset_description.json").write_text(
        json.dumps({"Name": "Toy", "BIDSVersion": "1.9.0"})
    )
    (folder / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\n")
    return truths
