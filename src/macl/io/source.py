"""What a reader finds in a folder: scans, cases, and the source as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MAX_VALUE = 65535
"""The largest label value that is read."""

MAX_CLASSES = 256
"""How many classes a store can tell apart, background included."""


@dataclass(frozen=True)
class SliceFiles:
    """A volume stored as one file per slice.

    Attributes:
        files: pictures in the order of the slices, or DICOM files, which reading sorts by position.
        grey_as_rgb: the pictures are RGB with three equal channels, of which one is read.
    """

    files: tuple[Path, ...]
    grey_as_rgb: bool = False

    @property
    def name(self) -> str:
        """The first file's name, which stands for all of them in messages."""
        return self.files[0].name


ScanPath = Path | SliceFiles
"""Where a volume lies: a file, a folder with a DICOM series, or the files of its slices."""


@dataclass(frozen=True)
class Case:
    """One scan of a source, with its label if it has one.

    Attributes:
        name: unique within the source; names the case in stores, masks and tables.
        images: one scan per channel, or one file that holds all channels.
        patient: who was scanned; cases of one patient never cross a split.
        label: on the image's grid; label pictures belong to the image's files one by one.
        frame: index of the time point, from 0, along the fourth axis of the image files and of the
            label; None: the files hold a single volume.
    """

    name: str
    images: tuple[ScanPath, ...]
    patient: str
    label: ScanPath | None = None
    frame: int | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file, or folder of a DICOM series, that the images and the label consist of."""
        scans = (*self.images, self.label) if self.label else self.images
        files = (scan.files if isinstance(scan, SliceFiles) else (scan,) for scan in scans)
        return tuple(path for paths in files for path in paths)


@dataclass(frozen=True)
class Source:
    """What a reader found in a folder.

    Attributes:
        reader: the reader's name.
        cases: every case of the layout, sorted by name.
        modality: "MR", "CT", "photograph" or "unknown".
        channels: names of the image channels, in order; empty: the layout does not name them.
        classes: label value → class name, background first, in the order of the store's labels
            0…K; values that share a name are one class; empty: the layout declares none, and the
            values found in the labels are used.
        refused: case name → why the layout itself rules it out, such as a label without an image.
        series: whole time series, each named like its frames without `_frame01`; ignored unless
            frames are asked for, and then without the frames that `cases` already has.
        plane: the plane in which the slices were scanned, where headers give it wrongly or not at
            all.
        anonymous: the data set is published without identities, so its own names are kept whatever
            its DICOM headers hold.
        patients_stated: whether the user has said who was scanned, whatever headers say.
        normalisation: "clip_zscore" (clip to the 1st and 99th percentile, then z-score per case) or
            "zscore".
        notes: assumptions and ignored files, in sentences for the user.
    """

    reader: str
    cases: tuple[Case, ...]
    modality: str = "unknown"
    channels: tuple[str, ...] = ()
    classes: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    series: tuple[Case, ...] = ()
    plane: Literal["auto", "axial", "coronal", "sagittal"] = "auto"
    anonymous: bool = False
    patients_stated: bool = False
    normalisation: Literal["clip_zscore", "zscore"] = "clip_zscore"
    notes: tuple[str, ...] = ()
