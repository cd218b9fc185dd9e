"""Sunnybrook as PNG pairs: `Images/…/SC-HF-I-01-IM-0001-0048.dcm.png`, `Labels/…` alike."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from macl.io.source import Case, SliceFiles, Source
from macl.readers._filenames import ignored_note, keep_unique_names
from macl.readers._reader import Reader
from macl.utils.errors import MaclError
from macl.utils.files import files_below

_NAME = re.compile(r"(?P<patient>SC-[A-Z-]+-\d+)-IM-\d{4}-(?P<number>\d{4})(\.dcm)?\.png")
_IS_LABEL = {"Images": False, "Labels": True}

_FRAMES = 20
"""Frames of the heart's cycle: a picture's number is 20 × slice + frame."""

Slices = dict[int, list[Path]]
"""Slice index → its pictures, which should be one."""


class _Frame(NamedTuple):
    """A patient, and a frame of the heart's cycle, from 1."""

    patient: str
    number: int

    @property
    def case(self) -> str:
        return f"{self.patient}_frame{self.number:02d}"


class _Picture(NamedTuple):
    is_label: bool
    frame: _Frame
    slice_index: int


class Sunnybrook(Reader):
    """Left ventricle in cine MR: 45 patients, two frames each, 805 labelled slices as pictures.

    Modality: MR (short axis), 256 × 256, spacing lost. Classes: left ventricle (255 in the labels).
    Licence: CC0 1.0.
    Obtain: https://github.com/mshunshin/SegNetCMR (`Data`), a conversion of the Cardiac Atlas
    Project's Sunnybrook Cardiac Data, https://www.cardiacatlas.org/sunnybrook-cardiac-data/
    Cite: Radau et al., "Evaluation framework for algorithms segmenting short axis cardiac MRI",
    MIDAS Journal 2009.
    Layout from: the files themselves. The cycle has 20 frames, says the challenge's page; a
    picture's number counts them slice by slice: it is 20 × slice + frame.
    """

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """A picture below `Images`, named as Sunnybrook names its images."""
        for path in files_below(source):
            picture = _parse_path(path, source)
            if picture and not picture.is_label:
                where = path.relative_to(source).as_posix()
                return 80, f"{where}, as Sunnybrook names its images"
        return None

    def read(self, source: Path) -> Source:
        """Every frame of a patient as a case: its slices in the order of their numbers.

        Raises:
            MaclError: there are no pictures.
        """
        images: dict[_Frame, Slices] = {}
        labels: dict[_Frame, Slices] = {}
        unrecognised: list[Path] = []
        for path in files_below(source):
            picture = _parse_path(path, source)
            if picture is None:
                unrecognised.append(path)
            else:
                slices_of = labels if picture.is_label else images
                slices = slices_of.setdefault(picture.frame, {})
                slices.setdefault(picture.slice_index, []).append(path)
        if not images:
            raise MaclError(
                f"{source} holds no Images/…/SC-…-IM-0001-NNNN.dcm.png, as Sunnybrook names its "
                "images: check the folder."
            )
        refused = {frame.case: "labels without images" for frame in labels if frame not in images}
        cases: list[Case] = []
        for frame, slices in images.items():
            problem = _problem(slices, labels.get(frame, {}))
            if problem:
                refused[frame.case] = problem
            else:
                label = _slice_files(labels[frame]) if frame in labels else None
                cases.append(Case(frame.case, (_slice_files(slices),), frame.patient, label))
        kept, refused = keep_unique_names(cases, refused)
        return Source(
            reader=self.name,
            cases=kept,
            modality="MR",
            channels=("cine MR",),
            classes={0: "background", 255: "LV"},
            refused=refused,
            normalisation="zscore",
            notes=(
                f"Assuming that a picture's number counts {_FRAMES} frames per slice; slices are "
                "stacked in that order.",
                *ignored_note(unrecognised, source, "not part of the layout"),
            ),
        )


def _parse_path(path: Path, source: Path) -> _Picture | None:
    """What a picture's path says; None: it is not part of the layout."""
    match = _NAME.fullmatch(path.name)
    folders = path.relative_to(source).parts[:-1]
    is_label = next((_IS_LABEL[folder] for folder in folders if folder in _IS_LABEL), None)
    if match is None or is_label is None:
        return None
    slice_index, frame = divmod(int(match["number"]) - 1, _FRAMES)
    return _Picture(is_label, _Frame(match["patient"], frame + 1), slice_index)


def _problem(images: Slices, labels: Slices) -> str | None:
    """Why the pictures of a frame are not a case."""
    if any(len(paths) > 1 for paths in (*images.values(), *labels.values())):
        return "two files share a slice's name: remove one"
    for before, after in pairwise(sorted(images)):
        if after != before + 1:
            first = (before + 1) * _FRAMES + 1
            return f"a slice is missing: no image number from {first} to {first + _FRAMES - 1}"
    if labels and labels.keys() != images.keys():
        return f"{len(labels)} labels for {len(images)} slices"
    return None


def _slice_files(slices: Slices) -> SliceFiles:
    return SliceFiles(tuple(slices[index][0] for index in sorted(slices)), grey_as_rgb=True)


PLUGIN = Sunnybrook
