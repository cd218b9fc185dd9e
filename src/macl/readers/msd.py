"""Medical Segmentation Decathlon: `imagesTr`, `labelsTr`, `imagesTs`, listed by `dataset.json`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from macl.io.source import Case
from macl.io.volume import stem_of
from macl.readers._dataset_json import DESCRIPTION, DescribedReader, Description, Listing
from macl.readers._filenames import (
    ignored_note,
    keep_unique_names,
    link_leads_out,
    printable_name,
    visible_files,
)
from macl.utils.errors import MaclError
from macl.utils.files import inside
from macl.utils.text import printable

NEIGHBOURS_ALIKE = (
    "In Hippocampus two neighbouring numbers seem to be one person: split with --group "
    "consecutive-pair."
)

_FOLDERS = (".", "imagesTr", "labelsTr", "imagesTs", "labelsTs")


class Msd(DescribedReader):
    """The folder of one of the ten tasks.

    Modality, channels and classes: as `dataset.json` says; several channels share one 4D file
    (Task01, Task05).
    Licence: CC BY-SA 4.0.
    Obtain: http://medicaldecathlon.com
    Cite: Antonelli et al., Nature Communications 2022, doi 10.1038/s41467-022-30695-9.
    Layout from: Task04 itself; for the other tasks, their `dataset.json` as published programs
    quote it.
    """

    title = "MSD"
    required_entries = ("modality", "labels", "training")
    channels_entry = "modality"
    specificity = 90

    def classes(self, description: Description) -> dict[int, str]:
        """The values and names of `labels`."""
        return description.classes(description.value("labels", dict).items())

    def list_cases(
        self, source: Path, description: Description, channels: tuple[str, ...]
    ) -> Listing:
        """Training pairs as labelled cases, test scans as unlabelled ones."""
        test = description.value("test", list) if "test" in description.entries else []
        entries = [*description.value("training", list), *test]
        pairs = [_image_and_label(source, entry) for entry in entries]
        cases: list[Case] = []
        refused: dict[str, str] = {}
        for image, label in pairs:
            name = stem_of(Path(image))
            problem = _problem(source, image) or (label and _problem(source, label))
            if problem:
                refused[name] = problem
            else:
                cases.append(Case(name, (source / image,), name, source / label if label else None))
        kept, refused = keep_unique_names(cases, refused)
        listed = {(source / path).resolve() for pair in pairs for path in pair if path}
        there = (path for folder in _FOLDERS for path in visible_files(source / folder))
        unlisted = [
            path for path in there if path.resolve() not in listed and path.name != DESCRIPTION
        ]
        notes = ignored_note(unlisted, source, f"not in {DESCRIPTION}")
        if "hippocampus" in str(description.entries.get("name", "")).lower():
            notes = (NEIGHBOURS_ALIKE, *notes)
        return Listing(kept, refused, notes)


def _image_and_label(source: Path, entry: Any) -> tuple[str, str | None]:
    """The paths of a training pair, or of a test scan."""
    is_pair = isinstance(entry, Mapping)
    image, label = (entry.get("image"), entry.get("label")) if is_pair else (entry, None)
    if not isinstance(image, str) or not isinstance(label, str | None):
        raise MaclError(
            f"{source / DESCRIPTION} lists something that is not a path: correct its training and "
            "test lists."
        )
    return image, label


def _problem(source: Path, relative: str) -> str | None:
    """Why a listed file cannot be read."""
    try:
        path = inside(source, relative)
    except MaclError:
        if not Path(relative).is_absolute() and not os.path.normpath(relative).startswith(".."):
            return link_leads_out(relative)
        return f"{DESCRIPTION} names {printable(relative)}, outside the data set's folder"
    if path.is_file():
        return None
    first_channel = path.with_name(f"{path.name.removesuffix('.nii.gz')}_0000.nii.gz")
    hint = ", but its channels are, as in nnU-Net's older layout" if first_channel.is_file() else ""
    return f"{printable_name(path)}, listed in {DESCRIPTION}, is not there{hint}"


PLUGIN = Msd
