"""nnU-Net's raw data, version 2: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, `imagesTs`, `dataset.json`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from macl.io.source import Case, Source
from macl.readers._dataset_json import DESCRIPTION, Description, modality_of
from macl.readers._filenames import one_of_each_name, passed_over, readable, visible_files
from macl.readers._reader import Reader
from macl.utils.errors import MaclError


class NnunetRaw(Reader):
    """One folder `DatasetNNN_Name`; every case counts as a patient, since the layout names none.

    Modality, channels and classes: as `dataset.json` says.
    Layout from: nnU-Net's own description, https://github.com/MIC-DKFZ/nnUNet (`documentation`).
    """


    def evidence(self, source: Path) -> tuple[int, str] | None:
        """`dataset.json` with channel names and a file ending, beside `imagesTr`."""
        described = Description.of(source)
        if not described or not {"channel_names", "file_ending"} <= described.found.keys():
            return None
        if not (source / "imagesTr").is_dir():
            return None
        return 100, f"{DESCRIPTION} with channel_names and file_ending, and imagesTr"

    def read(self, source: Path) -> Source:
        """Cases of `imagesTr` with the labels of `labelsTr`, and those of `imagesTs` without.

        Raises:
            MaclError: no `dataset.json`, or one that declares regions, an ignore label or scattered files.
        """
        described = Description.required(source, "nnU-Net")
        channels = described.channels("channel_names")
        ending = str(described.value("file_ending", str))
        classes = _classes(described)
        if "dataset" in described.found:
            raise MaclError(f"{described.path} lists its files itself ('dataset'), which is not read: copy them.")
        labels = {path.name.removesuffix(ending): path for path in visible_files(source / "labelsTr")}
        training, strange = _scans(source / "imagesTr", ending)
        test, others = _scans(source / "imagesTs", ending)
        whole = [_case(name, files, labels.pop(name, None), len(channels)) for name, files in training.items()]
        whole += [_case(name, files, None, len(channels)) for name, files in test.items()]
        kept, refused = one_of_each_name(case for case in whole if isinstance(case, Case))
        refused |= dict(case for case in whole if not isinstance(case, Case))
        refused |= {name: f"a label without an image: {readable(path)}" for name, path in labels.items()}
        strange += others + [path for path in visible_files(source) if path.name != DESCRIPTION]
        strange += visible_files(source / "labelsTs")
        notes = ("nnU-Net's layout names no patients: every case counts as a patient of its own.",)
        if unlabelled := sum(case.label is None for case in kept if case.name in training):
            notes += (f"{unlabelled} scans of imagesTr have no label in labelsTr.",)
        return Source(
            reader=self.name,
            modality=modality_of(channels),
            channels=channels,
            classes=classes,
            cases=kept,
            refused=refused,
            notes=notes + passed_over(strange, source, "not part of the layout"),
        )


def _classes(described: Description) -> dict[int, str]:
    labels = described.value("labels", dict)
    if "ignore" in labels:
        raise MaclError(f"{described.path} declares an ignore label, which macl does not know: label all voxels.")
    regions = [name for name, value in labels.items() if isinstance(value, list)]
    if regions:
        raise MaclError(
            f"{described.path} declares regions of several labels ({', '.join(regions)}), which macl does not "
            "know: declare one whole number per class."
        )
    return described.classes((value, name) for name, value in labels.items())


def _case(name: str, files: Mapping[int, Path], label: Path | None, channels: int) -> Case | tuple[str, str]:
    """The case, or its name and why it is none; a picture holds its colours in one file."""
    if sorted(files) == list(range(channels)):
        return Case(name, tuple(files[index] for index in range(channels)), name, label)
    if files.keys() == {0} and files[0].suffix.lower() == ".png":
        return Case(name, (files[0],), name, label)
    return (
        name,
        f"it has the channels {_numbers(files)} where {_numbers(range(channels))} are declared in {DESCRIPTION}",
    )


def _scans(folder: Path, ending: str) -> tuple[dict[str, dict[int, Path]], list[Path]]:
    """Case name → channel number → file, and the files that are named otherwise."""
    scans: dict[str, dict[int, Path]] = {}
    others: list[Path] = []
    for path in visible_files(folder):
        named = re.fullmatch(r"(.+)_(\d{4})" + re.escape(ending), path.name)
        if named:
            scans.setdefault(named[1], {})[int(named[2])] = path
        else:
            others.append(path)
    return scans, others


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:04d}" for number in sorted(numbers))


PLUGIN = NnunetRaw
