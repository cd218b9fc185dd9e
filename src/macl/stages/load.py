"""Finished runs → a model in memory, which segments scans wherever they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from macl.inference.masks import segment
from macl.inference.members import load_member, read_members
from macl.inference.scans import of_ensemble, prepare_volume
from macl.inference.sliding_window import SegmenterMember
from macl.io.geometry import Geometry, Volume
from macl.io.itk import from_image
from macl.io.volume import read_header, read_scan, require_contents, write_volume
from macl.plugins import find
from macl.records.runs import RunRecord, runs_at
from macl.utils.errors import MaclError, RefusedCaseError
from macl.utils.files import AnyPath, paths_of
from macl.utils.progress import warn

if TYPE_CHECKING:
    import SimpleITK
    from torch import nn

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_AXES_ASSUMED = "its axes are taken to run upwards, to the back and to the left (z, y, x)"
_SPACING_UNKNOWN = "no spacing is given, so it is unknown"


@dataclass(frozen=True)
class Mask:
    """What a model says of a scan, on the scan's own grid.

    Attributes:
        array: (z, y, x) label values.
        geometry: the scan's grid.
        classes: label value → name of the class, background first.
        probabilities: (K, z, y, x) in the order of the classes, where they were asked for.
        notes: what was assumed about the scan, and in what it is unlike those of the training.
    """

    array: np.ndarray
    geometry: Geometry
    classes: Mapping[int, str]
    probabilities: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def save(self, path: AnyPath) -> Path:
        """Write the mask as a .nii.gz, .nii, .nrrd, .mha or .png file, and return its path.

        Raises:
            MaclError: another suffix, or the file cannot be written.
        """
        path = Path(path)
        write_volume(path, self.array, self.geometry)
        return path


class SegmentationModel:
    """The segmenter of a finished run, or the mean of several; `load` makes one.

    Attributes:
        record: what `run.json` says of the (first) run, with the range of what all were trained on.
        patch: sides of the windows that a scan is segmented in, (y, x) or (z, y, x), by the (first)
            network.
        classes: label value → name of the class, background first.
        networks: plain modules in eval mode, one for each run: normalised images (B, C, *patch) →
            logits (B, K, *patch).
    """

    def __init__(self, record: RunRecord, ensemble: Sequence[SegmenterMember]) -> None:
        self.record, self.patch = record, ensemble[0].patch
        self.classes = dict(zip(record.label_values, record.classes, strict=True))
        self.networks: tuple[nn.Module, ...] = tuple(member.network for member in ensemble)
        self._ensemble = tuple(ensemble)

    @property
    def network(self) -> nn.Module:
        """The network of a single run.

        Raises:
            MaclError: the model averages several.
        """
        if len(self.networks) != 1:
            raise MaclError(f"The model averages {len(self.networks)} networks: see networks.")
        return self.networks[0]

    def predict(
        self,
        scan: AnyPath | Sequence[AnyPath] | np.ndarray | SimpleITK.Image,
        *,
        spacing_mm: Sequence[float] | None = None,
        probabilities: bool = False,
        batch_size: int | None = None,
    ) -> Mask:
        """Segment one scan, prepared as the scans of the training were.

        Args:
            scan: a file or a folder with a DICOM series; several, one per channel in the order of
                training; an array (z, y, x), (C, z, y, x) or, of a single slice, (y, x); or a
                SimpleITK image, whose spacing and direction are believed.
            spacing_mm: of an array, along z, y and x; None: unknown.
            probabilities: keep the probabilities of all classes too.
            batch_size: windows at a time, as for the stage `predict`.

        Raises:
            MaclError: the scan is missing, broken or of another kind, or does not fit the model.
        """
        name, volume, modality = self._read(scan, spacing_mm)
        expected = len(self.record.channels)
        try:
            if len(volume.array) != expected:
                raise RefusedCaseError(
                    f"it has {len(volume.array)} channels, but the model takes {expected} "
                    f"({', '.join(self.record.channels)})"
                )
            if volume.array.dtype.kind not in "iufb":
                raise RefusedCaseError(
                    f"its voxels are of type {volume.array.dtype}, expected real numbers"
                )
            require_contents(volume.array, volume.rescale)
            prepared = prepare_volume(volume, self.record, modality)
        except RefusedCaseError as error:
            raise _refused(name, error) from None
        unlike = (
            f"the model was {was}, but this scan has {own}" for was, own in prepared.differences
        )
        notes = (*prepared.notes, *unlike)
        for note in notes:
            warn(f"Note on {name}: {note}.")
        found = segment(
            self._ensemble,
            prepared,
            self.record.label_values,
            with_probabilities=probabilities,
            batch_size=batch_size,
        )
        return Mask(found.mask, prepared.geometry, self.classes, found.probabilities, notes)

    def _read(self, scan: Any, spacing_mm: Sequence[float] | None) -> tuple[str, Volume, str]:
        """The scan's name for messages, the scan, and its modality."""
        if isinstance(scan, np.ndarray):
            return "the array", _from_array(scan, spacing_mm), "unknown"
        if spacing_mm is not None:
            raise MaclError("spacing_mm is for arrays: files and images say their spacing.")
        if isinstance(scan, str | Path):
            return self._read_files([Path(scan)])
        if isinstance(scan, list | tuple) and scan and all(isinstance(i, str | Path) for i in scan):
            return self._read_files([*map(Path, scan)])
        if type(scan).__module__.partition(".")[0] != "SimpleITK":
            raise MaclError(
                f"A scan cannot be a {type(scan).__name__}: give a path, a list of paths (one per "
                "channel), an array or a SimpleITK image."
            )
        try:
            return "the image", from_image(scan), "unknown"
        except RefusedCaseError as error:
            raise _refused("the image", error) from None

    def _read_files(self, paths: Sequence[Path]) -> tuple[str, Volume, str]:
        name = str(paths[0])
        try:
            header = read_header(paths[0])
            if header.time_points not in (1, len(self.record.channels)):
                raise MaclError(
                    f"{name} is a time series of {header.time_points} scans: use macl.predict, or "
                    "give them one by one."
                )
            return name, read_scan(paths, len(self.record.channels)), header.modality
        except RefusedCaseError as error:
            raise _refused(name, error) from None


def load(runs: AnyPath | Sequence[AnyPath], device: str = "auto") -> SegmentationModel:
    """The model that finished fine-tuning or self-training runs have trained.

    Args:
        runs: a run's folder, that of `macl run`, or several, such as those of all folds, whose
            probabilities are averaged.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        MaclError: there is no such run, it is not finished or no segmenter, its weights are
            damaged, the runs do not fit each other, or there is no such device.
    """
    folders = [run for path in paths_of(runs) for run in runs_at(path) or [path]]
    if not folders:
        raise MaclError("There is no run to load: name the folder of one.")
    records = read_members(folders)
    ensemble = [
        load_member(run, record, find("models", record.settings["backbone"]), device)
        for run, record in zip(folders, records, strict=True)
    ]
    return SegmentationModel(of_ensemble(records), ensemble)


def _refused(name: str, error: RefusedCaseError) -> MaclError:
    return MaclError(f"{name} cannot be segmented: {str(error).rstrip('.')}.")


def _from_array(array: np.ndarray, spacing_mm: Sequence[float] | None) -> Volume:
    if array.ndim not in (2, 3, 4):
        raise MaclError(
            f"An array of shape {array.shape} is no scan: give (z, y, x), (C, z, y, x), or (y, x)."
        )
    if not array.size:
        raise MaclError(f"An array of shape {array.shape} is no scan: it is empty.")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    dims = min(array.ndim, 3)
    volume = array.reshape((1,) * (4 - array.ndim) + array.shape)
    x, y, z = reversed(volume.shape[1:])
    geometry = Geometry(
        size=(x, y, z), spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=_IDENTITY,
        spacing_known=False,
    )  # fmt: skip
    if spacing_mm is None:
        return Volume(volume, geometry, notes=(_SPACING_UNKNOWN,))
    try:
        spacing = [float(mm) for mm in spacing_mm]
    except (TypeError, ValueError):
        spacing = []
    if len(spacing) != dims or not all(0 < mm < math.inf for mm in spacing):
        axes = "z, y, x" if dims == 3 else "y, x"
        raise MaclError(f"spacing_mm takes {dims} numbers above 0 ({axes}), not {spacing_mm!r}.")
    x_mm, y_mm, z_mm = (*reversed(spacing), 1.0)[:3]
    known = {"spacing": (x_mm, y_mm, z_mm), "spacing_known": True}
    return Volume(volume, geometry.model_copy(update=known), notes=(_AXES_ASSUMED,))
