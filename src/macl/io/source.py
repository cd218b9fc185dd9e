"""Scans on disk, as readers name them: files, cases, and a whole source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:

    pass


@dataclass(frozen=True)
class Stack:
    """One volume in several files: the slices of a DICOM series, sorted by position when read, or pictures in order.

    Attributes:
        files: the slices.
        grey: the pictures hold a grey image in three equal channels, of which one is read.
    """

    files: tuple[Path, ...]
    grey: bool = False

    @property
    def name(self) -> str:
        """The first file's name, which stands for all in messages."""
        return self.files[0].name


Scan = Path | Stack
"""Where one volume lies: a file, a folder of a DICOM series, or a stack of files."""


def files_of(scan: Scan) -> tuple[Path, ...]:
    """The file, folder or files that a scan is made of."""
    return scan.files if isinstance(scan, Stack) else (scan,)


@dataclass(frozen=True)
class Case:
    """One scan of a source, with its label if it has one.

    Attributes:
        name: unique within the source; names the case in stores, masks and tables.
        images: one scan per channel, or one file that holds all channels.
        label: the label, with the image's geometry; a stack of pictures has a slice for each of the image's, in the
            order of the image's files.
        patient: who was scanned; cases of one patient never cross a split.
        frame: which moment of a time series it is, from 0: the volume along the fourth axis of its image files, and of
            its label; None: its files hold one volume.
    """

    name: str
    images: tuple[Scan, ...]
    patient: str
    label: Scan | None = None
    frame: int | None = None


def scans_of(case: Case) -> tuple[Scan, ...]:
    """A case's images and its label, if it has one."""
    return (*case.images, case.label) if case.label else case.images


@dataclass(frozen=True)
class Source:
    """What a reader found in a folder.

    Attributes:
        reader: the reader's name.
        modality: "MR", "CT", "photograph" or "unknown".
        channels: names of the image channels, in order.
        classes: raw label value → class name, background first, in the order of the store's labels 0…K; values
            of one name are one class;
            empty where the layout declares none: then the values found in the labels are taken, and said.
        cases: every case the layout names, sorted by name.
        refused: case name → why the layout itself rules it out (a label without an image, a duplicate name).
        series: whole time series, by the names of their frames before `_frame01`; passed over unless frames are asked for,
            and then without the frames that `cases` has already.
        plane: the plane the slices were scanned in, where headers tell it wrongly or not at all.
        anonymous: the data set is published without identities, so its own names are kept whatever DICOM headers hold.
        normalisation: "clip_zscore" (1st/99th percentile, then z-score of the case) or "zscore".
        notes: what was assumed, in sentences for the user.
    """

    reader: str
    modality: str
    channels: tuple[str, ...]
    classes: Mapping[int, str]
    cases: tuple[Case, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    series: tuple[Case, ...] = ()
    plane: Literal["auto", "axial", "coronal", "sagittal"] = "auto"
    anonymous: bool = False
    normalisation: Literal["clip_zscore", "zscore"] = "clip_zscore"
    notes: tuple[str, ...] = ()
