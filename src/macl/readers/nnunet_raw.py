"""nnU-Net's raw data, version 2: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, …"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from macl.io.source import Case
from macl.io.volume import suffix_of
from macl.readers._dataset_json import DESCRIPTION, DescribedReader, Description, Listing
from macl.readers._filenames import (
    ignored_note,
    keep_unique_names,
    label_without_image,
    visible_files,
)
from macl.utils.errors import MaclError
from macl.utils.text import printable, shown

_PARTS = ("Tr", "Ts")


class NnunetRaw(DescribedReader):
    """One folder `DatasetNNN_Name`.

    Modality, channels and classes: as `dataset.json` says.
    Layout from: nnU-Net's own description, https://github.com/MIC-DKFZ/nnUNet (`documentation`).
    """

    title = "nnU-Net"
    required_entries = ("channel_names", "file_ending")
    channels_entry = "channel_names"
    specificity = 100

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A description with the layout's entries, beside `imagesTr` or `imagesTs`."""
        there = any((source / f"images{part}").is_dir() for part in _PARTS)
        return super().evidence(source) if there else None

    def classes(self, description: Description) -> dict[int, str]:
        """The values and names of `labels`, without regions or an ignore label."""
        labels = description.value("labels", dict)
        if "ignore" in labels:
            raise MaclError(
                f"{description.path} declares an ignore label, which macl does not support: label "
                "all voxels."
            )
        regions = [name for name, value in labels.items() if isinstance(value, list)]
        if regions:
            raise MaclError(
                f"{description.path} declares regions of several labels ({', '.join(regions)}), "
                "which macl does not support: declare one whole number per class."
            )
        return description.classes((value, name) for name, value in labels.items())

    def list_cases(
        self, source: Path, description: Description, channels: tuple[str, ...]
    ) -> Listing:
        """Cases of `imagesTr` and `imagesTs` with the labels of `labelsTr` and `labelsTs`.

        Raises:
            MaclError: the description lists its files itself, or names another ending than the
                files have.
        """
        if "dataset" in description.entries:
            raise MaclError(
                f"{description.path} lists its files itself ('dataset'), which macl does not "
                "support: copy them into imagesTr and labelsTr."
            )
        ending = str(description.value("file_ending", str))
        _require_ending(source, ending)
        cases: list[Case] = []
        refused: dict[str, str] = {}
        strays: list[Path] = []
        unlabelled = {"Tr": 0, "Ts": 0}
        for part in _PARTS:
            labels = {
                path.name.removesuffix(ending): path
                for path in visible_files(source / f"labels{part}")
                if path.name.endswith(ending)
            }
            scans, others = _find_scans(source / f"images{part}", ending)
            for path in others:
                name = path.name.removesuffix(ending)
                if path.name.endswith(ending) and name not in scans:
                    labels.pop(name, None)
                    refused[name] = _no_channel_number(path, ending)
                else:
                    strays.append(path)
            for name, files in scans.items():
                label = labels.pop(name, None)
                if images := _images(files, len(channels)):
                    cases.append(Case(name, images, name, label))
                    unlabelled[part] += label is None
                else:
                    expected = _numbers(range(len(channels)))
                    refused[name] = (
                        f"it has the channels {_numbers(files)} where {DESCRIPTION} declares "
                        f"{expected}"
                    )
            refused |= {name: label_without_image(path) for name, path in labels.items()}
            strays += [
                path
                for path in visible_files(source / f"labels{part}")
                if not path.name.endswith(ending)
            ]
        kept, refused = keep_unique_names(cases, refused)
        strays += [path for path in visible_files(source) if path.name != DESCRIPTION]
        notes = ignored_note(strays, source, "not part of the layout")
        if unlabelled["Tr"]:
            notes = (f"{unlabelled['Tr']} scans of imagesTr have no label in labelsTr.", *notes)
        return Listing(kept, refused, (*_count_note(source, description, ending), *notes))


def _require_ending(source: Path, ending: str) -> None:
    """MaclError if no image has the ending that the description names."""
    images = [path for part in _PARTS for path in visible_files(source / f"images{part}")]
    endings = Counter(suffix_of(path) or path.suffix for path in images)
    if not images or (ending.startswith(".") and any(p.name.endswith(ending) for p in images)):
        return
    usual = endings.most_common(1)[0][0]
    raise MaclError(
        f"{source / DESCRIPTION} says file_ending {ending!r}, but the files of imagesTr end in "
        f"{usual!r}: correct it there."
    )


def _count_note(source: Path, description: Description, ending: str) -> tuple[str, ...]:
    """A sentence if the description announces another number of training cases."""
    announced = description.entries.get("numTraining")
    scans, _ = _find_scans(source / "imagesTr", ending)
    if announced is None or announced == len(scans):
        return ()
    return (
        f"{DESCRIPTION} says numTraining {shown(announced)}, but imagesTr holds {len(scans)} "
        "cases: is something missing?",
    )


def _no_channel_number(path: Path, ending: str) -> str:
    name = printable(path.name)
    right = f"{name.removesuffix(ending)}_0000{ending}"
    return f"{path.parent.name}/{name} lacks its channel number: rename it to {right}"


def _find_scans(folder: Path, ending: str) -> tuple[dict[str, dict[int, Path]], list[Path]]:
    """Case name → channel number → file, and the files with other names."""
    scans: dict[str, dict[int, Path]] = {}
    strays: list[Path] = []
    for path in visible_files(folder):
        match = re.fullmatch(r"(.+)_(\d{4})" + re.escape(ending), path.name)
        if match:
            scans.setdefault(match[1], {})[int(match[2])] = path
        else:
            strays.append(path)
    return scans, strays


def _images(files: Mapping[int, Path], channels: int) -> tuple[Path, ...]:
    """The files of a scan in the order of its channels; () if they do not fit.

    A picture holds its colours in one file.
    """
    is_picture = files.keys() == {0} and files[0].suffix.lower() == ".png"
    if not is_picture and sorted(files) != list(range(channels)):
        return ()
    return tuple(files[index] for index in sorted(files))


def _numbers(channels: Iterable[int]) -> str:
    return ", ".join(f"{channel:04d}" for channel in sorted(channels))


PLUGIN = NnunetRaw
