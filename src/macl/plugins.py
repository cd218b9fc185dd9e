"""The three contracts (Reader, Backbone, Method), what passes between them, and the catalogues.

The folder is the catalogue: `find("methods", "macl")` imports exactly `macl/methods/macl.py` and returns its `PLUGIN`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

from macl.config import PluginSettings, did_you_mean
from macl.errors import MaclError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from macl.data.draws import Draws

Kind = Literal["methods", "backbones", "readers"]


# ---------------------------------------------------------------- scans, as readers yield them


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


class Reader(Protocol):
    """A layout of scans on disk. Readers name files; they never open the scans, convert or augment."""

    name: str

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """How specific a sign of this layout `source` shows (higher wins), and the sign in words; None: not mine."""
        ...

    def read(self, source: Path) -> Source:
        """List the cases of `source`; MaclError where the layout is broken beyond use."""
        ...


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Batch:
    """Slices on the device, normalised, cropped or zero-padded to one side.

    Attributes:
        images: (B, C, S, S) float32.
        positions: (B,) float32, p = (index + 1) / slices of the slice's own volume.
        labels: (B, S, S) int64 for fine-tuning, None for pre-training.
        neighbours: (B, C, S, S) float32, for each slice the next one of its volume (the one before, for the last slice;
            the slice itself where it is alone), cropped alike; None where the method does not ask for them.
        draws: the batch's random numbers.
        done: share of the run's steps that came before this one, for schedules.
        gather_negatives: whether slices are contrasted with those of all processes that train together, each of which
            has its share of the batch, or with those of their own process.
    """

    images: Tensor
    positions: Tensor
    draws: Draws
    labels: Tensor | None = None
    neighbours: Tensor | None = None
    done: float = 0.0
    gather_negatives: bool = True

    def contrasted(self, rows: Tensor) -> Tensor:
        """What this share's (B, …) rows are compared among: the whole batch's rows, or these alone."""
        from macl import distributed

        return distributed.whole(rows) if self.gather_negatives else rows


@dataclass(frozen=True)
class Step:
    """What one step of a task yields.

    Attributes:
        loss: scalar to minimise.
        parts: named scalars for the log, the loss's parts first (still on the device, detached).
    """

    loss: Tensor
    parts: Mapping[str, Tensor]


class BackboneModule(Protocol):
    """A U-shaped network without its head, as `nn.Module`.

    `encode` returns the feature maps from the finest to the bottleneck; `decode` runs the decoder blocks that the
    module has (all of them, or the deepest N), each block doubling the height and width of the bottleneck.
    """

    encoder: nn.Module
    decoder: nn.Module
    channels: tuple[int, ...]
    """Channels of every encoder level, finest first; the last is the bottleneck."""

    def encode(self, images: Tensor) -> list[Tensor]: ...
    def decode(self, features: list[Tensor]) -> Tensor: ...
    def __call__(self, images: Tensor) -> Tensor: ...


class Backbone(Protocol):
    """A network by name."""

    name: str
    Settings: type[PluginSettings]

    def build(self, settings: Any, in_channels: int, decoder_blocks: int | None = None) -> BackboneModule:
        """The network with all its decoder blocks, or only the deepest `decoder_blocks`."""
        ...


class MethodModule(Protocol):
    """A pre-training method as `nn.Module`, holding its `backbone` and heads."""

    backbone: BackboneModule

    def step(self, batch: Batch) -> Step: ...

    def uniform_loss(self, batch_size: int) -> tuple[str, float] | None:
        """The logged part that shows collapse and its value where all features are equal; None: nothing shows it."""
        ...

    def handed_on(self) -> tuple[str, ...]:
        """Prefixes of the backbone's tensors that are worth transplanting, such as ("encoder.", "decoder.")."""
        ...


@dataclass(frozen=True)
class Method:
    """A way to pre-train, by name.

    Attributes:
        name: the name of its module.
        Settings: its settings; their defaults are its paper's.
        build: settings and a backbone with as many decoder blocks as it trains → the module.
        decoder_blocks: settings → how many of the backbone's decoder blocks it trains; none unless said.
        side_multiple: settings → what slice sides must be a multiple of; 16, as the encoders pool, unless said.
        neighbours: whether batches must bring a neighbour of every slice.
    """

    name: str
    Settings: type[PluginSettings]
    build: Callable[[Any, BackboneModule], MethodModule]
    decoder_blocks: Callable[[Any], int] = lambda settings: 0
    side_multiple: Callable[[Any], int] = lambda settings: 16
    neighbours: bool = False


# ---------------------------------------------------------------- catalogues


def names(kind: Kind) -> tuple[str, ...]:
    """The names in a catalogue, sorted: the modules of the folder `macl/<kind>`."""
    package = importlib.import_module(f"macl.{kind}")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


@overload
def find(kind: Literal["methods"], name: str) -> Method: ...
@overload
def find(kind: Literal["backbones"], name: str) -> Backbone: ...
@overload
def find(kind: Literal["readers"], name: str) -> Reader: ...
def find(kind: Kind, name: str) -> Any:
    """The plug-in `name` of a catalogue: `PLUGIN` in `macl/<kind>/<name>.py`.

    A reader whose data set has parts (CT and MR) has a reader for each in `parts`, found as "name:part".

    Raises:
        MaclError: there is none of that name; the nearest right one is named.
    """
    name, _, part = name.partition(":")
    known = names(kind)
    if name not in known:
        raise MaclError(f"There is no {kind[:-1]} called {name!r}; {did_you_mean(name, known)}.")
    plugin = importlib.import_module(f"macl.{kind}.{name}").PLUGIN
    if not part:
        return plugin
    parts = getattr(plugin, "parts", {})
    if part not in parts:
        raise MaclError(f"{name!r} has no part {part!r}; {'known: ' + ', '.join(parts) if parts else 'it has none'}.")
    return parts[part]
