"""Medical Segmentation Decathlon: `imagesTr`, `labelsTr`, `imagesTs`, and `dataset.json` that lists them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from macl.io.source import Case, Source
from macl.io.volume import stem_of
from macl.readers._dataset_json import DESCRIPTION, Description, modality_of
from macl.readers._filenames import one_of_each_name, passed_over, readable, visible_files
from macl.readers._reader import Reader
from macl.utils.errors import MaclError
from macl.utils.files import inside


class Msd(Reader):
    """One of the ten tasks' folders. The Decathlon names no patients, so every case counts as one.

    Modality, channels and classes: as `dataset.json` says; several channels share one 4D file (Task01, Task05).
    Licence: CC BY-SA 4.0.
    Obtain: http://medicaldecathlon.com
    Cite: Antonelli et al., Nature Communications 2022, doi 10.1038/s41467-022-30695-9.
    Layout from: Task04 itself; for the other tasks, their `dataset.json` as published programs quote it.
    """


    def evidence(self, source: Path) -> tuple[int, str] | None:
        """`dataset.json` with a modality and a list of training pairs."""
        described = Description.of(source)
        if not described or not {"modality", "training", "labels"} <= described.found.keys():
            return None
        return 90, f"{DESCRIPTION} with modality, labels and a list of training pairs"

    def read(self, source: Path) -> Source:
        """Training pairs as labelled cases, test scans as unlabelled ones.

        Raises:
            MaclError: `dataset.json` is missing or unusable.
        """
        described = Description.required(source, "the Decathlon")
        channels = described.channels("modality")
        test = described.value("test", list) if "test" in described.found else []
        pairs = [_pair(source, entry) for entry in (*described.value("training", list), *test)]
        cases: list[Case] = []
        refused: dict[str, str] = {}
        for image, label in pairs:
            name = stem_of(Path(image))
            problem = _problem(source, image) or (label and _problem(source, label))
            if problem:
                refused[name] = problem
            else:
                cases.append(Case(name, (source / image,), name, source / label if label else None))
        kept, duplicates = one_of_each_name(cases)
        listed = {(source / path).resolve() for pair in pairs for path in pair if path}
        folders = (source, *(source / name for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")))
        there = [path for folder in folders for path in visible_files(folder) if path.name != DESCRIPTION]
        unlisted = [path for path in there if path.resolve() not in listed]
        note = "The Decathlon names no patients: every case counts as a patient of its own."
        return Source(
            reader=self.name,
            modality=modality_of(channels),
            channels=channels,
            classes=described.classes(described.value("labels", dict).items()),
            cases=kept,
            refused=refused | duplicates,
            notes=(note, *passed_over(unlisted, source, f"not listed in {DESCRIPTION}")),
        )


def _pair(source: Path, entry: Any) -> tuple[str, str | None]:
    image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, Mapping) else (entry, None)
    if not isinstance(image, str) or not isinstance(label, str | None):
        raise MaclError(f"{source / DESCRIPTION} lists something that is no path: mend its training and test lists.")
    return image, label


def _problem(source: Path, relative: str) -> str | None:
    try:
        path = inside(source, relative)
    except MaclError:
        return f"{DESCRIPTION} points out of the data set's folder"
    if path.is_file():
        return None
    first_channel = path.with_name(f"{path.name.removesuffix('.nii.gz')}_0000.nii.gz")
    hint = ", but its channels are, as in nnU-Net's older layout" if first_channel.is_file() else ""
    return f"{readable(path)}, listed in {DESCRIPTION}, is not there{hint}"


PLUGIN = Msd
