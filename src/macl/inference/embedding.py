"""A run's encoder + prepared scans → features: the mean of the bottleneck over each window."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from macl.data.store_index import Normalisation
from macl.engine.compiling import to_device_layout
from macl.engine.trainer import make_fabric
from macl.inference.sliding_window import WindowGrid, default_batch_size
from macl.models.layers import spatial_mean
from macl.models.network import Network
from macl.preprocessing.normalisation import normalise
from macl.records.runs import WEIGHTS, RunRecord, read_weights, require_finished
from macl.tasks.networks import plugin_settings
from macl.utils.errors import MaclError

_PREFIX = "encoder."


@dataclass(frozen=True)
class CaseFeatures:
    """The features of one case.

    Attributes:
        starts: (N, 3), first slice, row and column of every window in the store's volume; in 2D one
            for every slice.
        sides: of the windows, (z, y, x); 1 along z in 2D.
        windows: (N, F) float32.
    """

    starts: np.ndarray
    sides: tuple[int, int, int]
    windows: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(F,) over the windows."""
        return self.windows.mean(axis=0)


class Embedder:
    """The encoder of a finished run of any kind, which turns scans into features.

    Args:
        run: the run's folder.
        record: the run's.
        network: the plug-in that its settings name.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        MaclError: the run is not finished, its weights are missing or damaged or hold no encoder,
            or there is no such device.
    """

    def __init__(self, run: Path, record: RunRecord, network: type[Network], device: str) -> None:
        require_finished(run, record)
        self.patch = record.patch
        self.device = make_fabric(device, "fp32").device
        self._network = _load_encoder(run, record, network)
        to_device_layout(self._network, self.device)

    def embed(
        self, image: np.ndarray, normalisation: Normalisation, batch_size: int | None = None
    ) -> CaseFeatures:
        """The features of one volume.

        A slice that is larger than the patch of the training is covered by windows, whose mean
        stands for it; one that is smaller is padded, as it was in training.

        Args:
            image: (C, Z, Y, X) in the units of `normalisation`.
            normalisation: of the image.
            batch_size: windows at a time; None: as `predict` takes.
        """
        depth, rows, columns = (1,) * (3 - len(self.patch)) + self.patch
        grid = WindowGrid.over(image.shape[1:], (depth, rows, columns))
        count = batch_size or default_batch_size(self.patch)

        @lru_cache(maxsize=1)
        def slab(start: int, stop: int) -> torch.Tensor:
            return torch.from_numpy(normalise(image[:, start:stop], normalisation))

        batches = (
            grid.corners[first : first + count] for first in range(0, len(grid.corners), count)
        )
        features = np.concatenate(
            [
                self._of_windows(torch.stack([grid.cut(slab, corner) for corner in batch]))
                for batch in batches
            ]
        )
        starts = np.asarray(grid.corners, dtype=np.int64)
        if len(self.patch) == 2:
            # The windows of a slice follow each other, and every slice has as many.
            slices = grid.size[0]
            features = features.reshape(slices, -1, features.shape[1]).mean(axis=1)
            starts = starts.reshape(slices, -1, 3)[:, 0]
        return CaseFeatures(starts, grid.sides, features)

    @torch.inference_mode()
    def _of_windows(self, windows: torch.Tensor) -> np.ndarray:
        """(B, C, *sides) → (B, F)."""
        if len(self.patch) == 2:
            windows = windows.squeeze(2)
        padding: list[int] = []
        for side, of in zip(windows.shape[2:], self.patch, strict=True):
            before = (of - side + 1) // 2
            padding = [before, of - side - before, *padding]
        padded = functional.pad(windows.to(self.device), padding)
        return spatial_mean(self._network.encode(padded)[-1]).float().cpu().numpy()


def _load_encoder(run: Path, record: RunRecord, network: type[Network]) -> Network:
    """The network of a run with its trained encoder, without decoder blocks, in eval mode."""
    settings = record.settings
    chosen = plugin_settings(network, settings["backbone_settings"], "backbone_settings")
    built = network(chosen, len(record.channels), dims=settings["dims"], decoder_blocks=0)
    saved = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in read_weights(run, record).tensors.items()
        if name.startswith(_PREFIX)
    }
    try:
        built.encoder.load_state_dict(saved)
    except RuntimeError:
        raise MaclError(
            f"{run / WEIGHTS} holds no encoder that fits the settings in {run}: train again."
        ) from None
    return built.eval()
