"""nnU-Net's raw data, version 2: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, …"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from macl.io.source import Case
from macl.readers._dataset_json import DESCRIPTION, DescribedReader, Description, Listing
from macl.readers._filenames import (
    ignored_note,
    keep_unique_names,
    label_without_image,
    visible_files,
)
from macl.utils.errors import MaclError


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
        """A description with the layout's entries, beside `imagesTr`."""
        return super().evidence(source) if (source / "imagesTr").is_dir() else None

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
        """Cases of `imagesTr` with the labels of `labelsTr`, and those of `imagesTs` without."""
        if "dataset" in description.entries:
            raise MaclError(
                f"{description.path} lists its files itself ('dataset'), which macl does not "
                "support: copy them into imagesTr and labelsTr."
            )
        ending = str(description.value("file_ending", str))
        labels = {
            path.name.removesuffix(ending): path for path in visible_files(source / "labelsTr")
        }
        training, strays = _find_scans(source / "imagesTr", ending)
        test, test_strays = _find_scans(source / "imagesTs", ending)
        scans = [(name, files, labels.pop(name, None)) for name, files in training.items()]
        scans += [(name, files, None) for name, files in test.items()]
        cases: list[Case] = []
        refused: dict[str, str] = {}
        for name, files, label in scans:
            if images := _images(files, len(channels)):
                cases.append(Case(name, images, name, label))
            else:
                expected = _numbers(range(len(channels)))
                refused[name] = (
                    f"it has the channels {_numbers(files)} where {DESCRIPTION} declares {expected}"
                )
        refused |= {name: label_without_image(path) for name, path in labels.items()}
        kept, refused = keep_unique_names(cases, refused)
        unlabelled = sum(case.label is None for case in kept if case.name in training)
        strays += test_strays + visible_files(source / "labelsTs")
        strays += [path for path in visible_files(source) if path.name != DESCRIPTION]
        notes = ignored_note(strays, source, "not part of the layout")
        if unlabelled:
            notes = (f"{unlabelled} scans of imagesTr have no label in labelsTr.", *notes)
        return Listing(kept, refused, notes)


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
