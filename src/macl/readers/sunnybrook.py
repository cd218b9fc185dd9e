"""Sunnybrook as PNG pairs: `Train|Test/Images|Labels/Sunnybrook_PartN/SC-HF-I-01-IM-0001-0048.dcm.png`."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from macl.io.source import Case, Source, Stack
from macl.readers._filenames import one_of_each_name, passed_over
from macl.readers._reader import Reader
from macl.utils.errors import MaclError
from macl.utils.files import files_below

_FILE = re.compile(r"(SC-[A-Z-]+-\d+)-IM-(\d{4})-(\d{4})(\.dcm)?\.png")
_ROLES = {"Images": False, "Labels": True}
_FRAMES = 20

Key = tuple[str, int]
"""A patient and a frame of the heart's cycle, from 1."""


class Sunnybrook(Reader):
    """Left ventricle in cine MR of the heart: 45 patients, two frames of the cycle each, 805 labelled slices as pictures.

    Modality: MR (short axis), 256 × 256, spacing lost. Classes: left ventricle (255 in the labels).
    Licence: CC0 1.0.
    Obtain: https://github.com/mshunshin/SegNetCMR (`Data`), a conversion of the Cardiac Atlas Project's Sunnybrook Cardiac
    Data, https://www.cardiacatlas.org/sunnybrook-cardiac-data/
    Cite: Radau et al., "Evaluation framework for algorithms segmenting short axis cardiac MRI", MIDAS Journal 2009.
    Layout from: the files themselves. The cycle has 20 frames, says the challenge's page; an image's number counts them
    slice by slice: it is 20 × slice + frame.
    """


    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A picture below `Images`, named as Sunnybrook names its images."""
        for path in files_below(source):
            if _role(path, source) is False:
                return 80, f"{path.relative_to(source).as_posix()}, as Sunnybrook names its images"
        return None

    def read(self, source: Path) -> Source:
        """Every frame of a patient as a case: its slices in the order of their numbers.

        Raises:
            MaclError: there is no picture.
        """
        images: dict[Key, dict[int, list[Path]]] = {}
        labels: dict[Key, dict[int, list[Path]]] = {}
        strange: list[Path] = []
        for path in files_below(source):
            is_label = _role(path, source)
            if is_label is None:
                strange.append(path)
            else:
                key, place = _place(path)
                (labels if is_label else images).setdefault(key, {}).setdefault(place, []).append(path)
        if not images:
            raise MaclError(f"{source} holds no Images/…/SC-…-IM-0001-NNNN.dcm.png, as Sunnybrook's layout wants.")
        refused = {_name(key): "labels without images" for key in labels if key not in images}
        cases: list[Case] = []
        for key, slices in images.items():
            problem = _problem(slices, labels.get(key, {}))
            if problem:
                refused[_name(key)] = problem
            else:
                label = _stack(labels[key]) if key in labels else None
                cases.append(Case(_name(key), (_stack(slices),), key[0], label))
        kept, duplicates = one_of_each_name(cases)
        note = f"An image's number is taken to count {_FRAMES} frames a slice; slices are stacked in that order."
        return Source(
            reader=self.name,
            modality="MR",
            channels=("cine MR",),
            classes={0: "background", 255: "LV"},
            cases=kept,
            refused=refused | duplicates,
            normalisation="zscore",
            notes=(note, *passed_over(strange, source, "not part of the layout")),
        )


def _role(path: Path, source: Path) -> bool | None:
    """Whether a picture is a label; None: it is no part of the layout."""
    if not _FILE.fullmatch(path.name):
        return None
    folders = path.relative_to(source).parts[:-1]
    return next((_ROLES[folder] for folder in folders if folder in _ROLES), None)


def _place(path: Path) -> tuple[Key, int]:
    named = _FILE.fullmatch(path.name)
    assert named
    number = int(named[3]) - 1
    return (named[1], number % _FRAMES + 1), number // _FRAMES


def _name(key: Key) -> str:
    return f"{key[0]}_frame{key[1]:02d}"


def _problem(images: dict[int, list[Path]], labels: dict[int, list[Path]]) -> str | None:
    if any(len(paths) > 1 for paths in (*images.values(), *labels.values())):
        return "two files share a slice's name: remove one"
    gap = next((before for before, after in pairwise(sorted(images)) if after != before + 1), None)
    if gap is not None:
        return f"a slice is missing after the image number {gap * _FRAMES + 1} to {(gap + 1) * _FRAMES}"
    if labels and labels.keys() != images.keys():
        return f"{len(labels)} labels for {len(images)} slices"
    return None


def _stack(slices: dict[int, list[Path]]) -> Stack:
    return Stack(tuple(slices[place][0] for place in sorted(slices)), grey=True)


PLUGIN = Sunnybrook
