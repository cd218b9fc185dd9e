"""nnU-Net's raw data, version 2: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, `imagesTs`, `dataset.json`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from macl.data.layouts import (
    DESCRIPTION,
    description,
    modality_of,
    one_of_each_name,
    passed_over,
    readable,
    required,
    visible_files,
)
from macl.errors import MaclError
from macl.plugins import Case, Source


class NnunetRaw:
    """One folder `DatasetNNN_Name`; every case counts as a patient, since the layout names none."""

    name = "nnunet_raw"

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """`dataset.json` with channel names and a file ending, beside `imagesTr`."""
        found = description(source)
        if not found or not {"channel_names", "file_ending"} <= found.keys() or not (source / "imagesTr").is_dir():
            return None
        return 100, f"{DESCRIPTION} with channel_names and file_ending, and imagesTr"

    def read(self, source: Path) -> Source:
        """Cases of `imagesTr` with the labels of `labelsTr`, and those of `imagesTs` without.

        Raises:
            MaclError: no `dataset.json`, or one that declares regions, an ignore label or scattered files.
        """
        found = description(source)
        if found is None:
            raise MaclError(f"{source} has no readable {DESCRIPTION}, as nnU-Net's layout wants: check the folder.")
        channels = _channels(source, found)
        ending = str(required(found, "file_ending", str, source))
        classes = _classes(source, required(found, "labels", dict, source))
        if "dataset" in found:
            raise MaclError(f"{source / DESCRIPTION} lists its files itself ('dataset'), which is not read: copy them.")
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


def _channels(source: Path, found: Mapping[str, Any]) -> tuple[str, ...]:
    named = required(found, "channel_names", dict, source)
    if sorted(named) != sorted(str(index) for index in range(len(named))) or not named:
        raise MaclError(f"{source / DESCRIPTION} does not number its channel_names 0, 1, …: mend it.")
    return tuple(str(named[str(index)]) for index in range(len(named)))


def _classes(source: Path, labels: Mapping[str, Any]) -> dict[int, str]:
    if "ignore" in labels:
        raise MaclError(f"{source / DESCRIPTION} declares an ignore label, which macl does not know: label all voxels.")
    regions = [name for name, value in labels.items() if isinstance(value, list)]
    if regions:
        raise MaclError(
            f"{source / DESCRIPTION} declares regions of several labels ({', '.join(regions)}), which macl does not "
            "know: declare one whole number per class."
        )
    try:
        classes = {int(value): str(name) for name, value in labels.items()}
    except (TypeError, ValueError):
        raise MaclError(f"{source / DESCRIPTION} declares a label that is no whole number: mend it.") from None
    if len(classes) != len(labels) or 0 not in classes:
        raise MaclError(f"{source / DESCRIPTION} must declare one number per label, 0 for the background: mend it.")
    return dict(sorted(classes.items()))


def _case(name: str, files: Mapping[int, Path], label: Path | None, channels: int) -> Case | tuple[str, str]:
    """The case, or its name and why it is none."""
    if sorted(files) == list(range(channels)):
        return Case(name, tuple(files[index] for index in range(channels)), name, label)
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


PLUGIN = NnunetRaw()
