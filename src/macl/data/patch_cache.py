"""The voxels of a store's cases, ready for patches to be cut from them.

They live on the device where they fit, else in host memory, else in the store. All three hand the
same voxels, in the store's own integers, to one step on the device, which cuts, pads and
normalises.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from macl.data.store import READING_THREADS, Store
from macl.data.store_index import ArrayKind
from macl.data.windows import Windows, full_shape, select_volumes
from macl.utils.memory import free_host_bytes

Residence = Literal["device", "host", "disk"]

SHARE_OF_FREE_MEMORY = 0.5


@dataclass(frozen=True)
class FetchedVoxels:
    """Blocks of voxels on the device, from which patches are cut.

    Attributes:
        images: the blocks' values in one row, each block (C, z, y, x).
        labels: likewise, each block (z, y, x); None where no labels are read.
        layout: (B, 8) int64. For each patch: where its block starts among the voxels of one
            channel, the block's sides z, y and x, where the patch starts in the block along z, y
            and x (below 0 where it is padded), and its volume's number.
    """

    images: Tensor
    labels: Tensor | None
    layout: Tensor


class PatchCache:
    """The volumes of some cases of a store, of any sizes.

    Args:
        store: where the volumes are.
        cases: names of the cases, in the order that numbers the volumes.
        labelled: whether labels are read too. If names are given, the labels of these cases alone
            are read; that of any other case is 0.
        given_labels: (z, y, x) arrays in place of the store's labels, by case; these cases do not
            count as labelled.
        device: where batches are made.
        residence: where the voxels live; None: the nearest to the device that has room.
        minimum_content: share of a slice that must not be air; see `Volumes`.

    Attributes:
        volumes: what patches can be drawn from.
        has_label: (N,) bool, whose labels are read from the store.
        total_bytes: size of the voxels in memory.

    Raises:
        MaclError: a case is missing or broken, or no slice is left.
    """

    def __init__(
        self,
        store: Store,
        cases: Sequence[str],
        labelled: bool | Collection[str],
        device: torch.device,
        residence: Residence | None = None,
        minimum_content: float = 0.0,
        given_labels: Mapping[str, Any] | None = None,
    ) -> None:
        self.store, self.device, self.labelled = store, device, bool(labelled)
        self.given_labels = given_labels or {}
        self.volumes = select_volumes(store, cases, minimum_content)
        self.channels = len(store.index.channels)
        stored = self.volumes.cases
        counts = self.volumes.sizes.prod(1)
        self._starts = counts.cumsum(0) - counts
        self._voxels = int(counts.sum())
        self.dtype = _torch_dtype([case.arrays["image"].dtype for case in stored])
        bytes_per_voxel = self.channels * self.dtype.itemsize + bool(labelled)
        self.total_bytes = self._voxels * bytes_per_voxel
        self.residence = residence or _nearest_with_room(self.total_bytes, device)
        numbers = [case.normalisation for case in stored]
        limits = [(n.low, n.high, n.mean, n.deviation) for n in numbers]
        self._normalisation = torch.tensor(limits, dtype=torch.float32).to(device)
        read = {case.name for case in stored} if isinstance(labelled, bool) else {*labelled}
        self.has_label = torch.tensor([case.name in read for case in stored])
        self._all_have_labels = bool(self.has_label.all())
        self._labelled_on_device = self.has_label.to(device)
        self._resident = self._load() if self.residence != "disk" else None
        self._readers = ThreadPoolExecutor(READING_THREADS) if self.residence == "disk" else None

    def _load(self) -> tuple[Tensor, Tensor | None]:
        """Every volume's image and label in one row."""
        images = torch.empty(self._voxels * self.channels, dtype=self.dtype)
        labels = torch.empty(self._voxels, dtype=torch.uint8) if self.labelled else None

        def fill(volume: int) -> None:
            origin, size = (t[volume].tolist() for t in (self.volumes.origins, self.volumes.sizes))
            image, label = self._read_block(volume, origin, size)
            start = int(self._starts[volume])
            first = start * self.channels
            images[first : first + len(image)] = image
            if labels is not None and label is not None:
                labels[start : start + len(label)] = label

        with ThreadPoolExecutor(READING_THREADS) as readers:
            list(readers.map(fill, range(len(self.volumes.cases))))
        where = self.device if self.residence == "device" else torch.device("cpu")
        return images.to(where), None if labels is None else labels.to(where)

    def _read_block(
        self, volume: int, start: Sequence[int], sides: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """A block of a volume's image and label from the store, each in one row."""
        image = self._read(volume, "image", start, sides)
        if not self.labelled:
            return image, None
        if not self.has_label[volume]:
            return image, self._given_label(volume, start, sides)
        return image, self._read(volume, "label", start, sides)

    def _given_label(self, volume: int, start: Sequence[int], sides: Sequence[int]) -> Tensor:
        name = self.volumes.cases[volume].name
        if name not in self.given_labels:
            return torch.zeros(int(np.prod(sides)), dtype=torch.uint8)
        z, y, x = (slice(first, first + side) for first, side in zip(start, sides, strict=True))
        return torch.from_numpy(np.ascontiguousarray(self.given_labels[name][z, y, x])).flatten()

    def _read(
        self, volume: int, kind: ArrayKind, start: Sequence[int], sides: Sequence[int]
    ) -> Tensor:
        z, y, x = (slice(first, first + side) for first, side in zip(start, sides, strict=True))
        values = self.store.read(self.volumes.cases[volume].name, kind, (z, y, x))
        if values.dtype == np.uint16:  # which PyTorch cannot convert to every type
            values = values.astype(np.int32)
        wanted = self.dtype if kind == "image" else torch.uint8
        return torch.from_numpy(np.ascontiguousarray(values)).to(wanted).flatten()

    def fetch(self, windows: Windows, patch: tuple[int, ...]) -> FetchedVoxels:
        """Bring the voxels of patches to the device (asynchronously where that is a GPU).

        Args:
            windows: where the B patches lie.
            patch: their sides, (y, x) or (z, y, x).
        """
        origins, sizes = self.volumes.origins[windows.volumes], self.volumes.sizes[windows.volumes]
        within = windows.starts - origins
        if self.residence == "device" and self._resident is not None:
            columns = (self._starts[windows.volumes, None], sizes, within)
            layout = torch.cat((*columns, windows.volumes[:, None]), dim=1)
            return FetchedVoxels(*self._resident, self.send(layout))
        first = within.clamp(min=0)
        sides = (within + torch.tensor(full_shape(patch))).minimum(sizes) - first
        counts = sides.prod(1)
        columns = ((counts.cumsum(0) - counts)[:, None], sides, within - first)
        layout = torch.cat((*columns, windows.volumes[:, None]), dim=1)
        blocks = self._blocks(windows.volumes, first, sides)
        images = torch.cat([image for image, _ in blocks])
        labels = [label for _, label in blocks if label is not None]
        return FetchedVoxels(
            images=self.send(images),
            labels=self.send(torch.cat(labels)) if labels else None,
            layout=self.send(layout),
        )

    def send(self, values: Tensor) -> Tensor:
        """Values on the device; the host does not wait for a GPU to have them."""
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)

    def _blocks(
        self, volumes: Tensor, first: Tensor, sides: Tensor
    ) -> list[tuple[Tensor, Tensor | None]]:
        """The voxels of each patch in one row, without padding.

        Args:
            volumes: (B,).
            first: (B, 3) first voxels, counted from the volumes' origins.
            sides: (B, 3).
        """
        if self._readers is not None:
            starts = first + self.volumes.origins[volumes]
            rows = (volumes.tolist(), starts.tolist(), sides.tolist())
            return list(self._readers.map(self._read_block, *rows))
        assert self._resident is not None
        images, labels = self._resident
        blocks: list[tuple[Tensor, Tensor | None]] = []
        for volume, starts, block in zip(
            volumes.tolist(), first.tolist(), sides.tolist(), strict=True
        ):
            size = self.volumes.sizes[volume].tolist()
            start, count = int(self._starts[volume]), int(np.prod(size))
            window = tuple(slice(a, a + side) for a, side in zip(starts, block, strict=True))
            image = images[start * self.channels : (start + count) * self.channels]
            image = image.reshape(self.channels, *size)[(slice(None), *window)].flatten()
            label = None if labels is None else labels[start : start + count].reshape(size)
            blocks.append((image, None if label is None else label[window].flatten()))
        return blocks

    def cut(
        self, fetched: FetchedVoxels, patch: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Cut patches from fetched voxels, with 0 around smaller volumes, and normalise them.

        Args:
            fetched: of B patches.
            patch: their sides, (y, x) or (z, y, x).

        Returns:
            Images (B, C, *patch) float32, labels (B, *patch) int64 or None, and which patches have
            a label (B,) bool, or None where all do or labels are not read.
        """
        block_start, *others = fetched.layout.unbind(1)
        sides, starts, volume = others[:3], others[3:6], others[6]
        voxels, inside = [], []
        for axis, length in enumerate(full_shape(patch)):
            shape = tuple(length if other == axis else 1 for other in range(3))
            along = torch.arange(length, device=self.device).reshape(1, *shape)
            number = starts[axis][:, None, None, None] + along
            contained = (number >= 0) & (number < sides[axis][:, None, None, None])
            voxels.append(torch.where(contained, number, 0))
            inside.append(contained)
        z, y, x = voxels
        rows, columns = (side[:, None, None, None] for side in sides[1:])
        offset = (z * rows + y) * columns + x
        contained = inside[0] & inside[1] & inside[2]
        channel = torch.arange(self.channels, device=self.device)[:, None, None, None]
        count = (sides[0] * sides[1] * sides[2])[:, None, None, None, None]
        image_start = block_start[:, None, None, None, None] * self.channels
        values = fetched.images[image_start + channel * count + offset[:, None]].float()
        limits = self._normalisation[volume][..., None, None, None]
        low, high, mean, deviation = limits.unbind(1)
        values = (torch.minimum(torch.maximum(values, low), high) - mean) / deviation
        images = torch.where(contained[:, None], values, 0.0)
        images = images.reshape(len(images), self.channels, *patch)
        if fetched.labels is None:
            return images, None, None
        labels = fetched.labels[block_start[:, None, None, None] + offset].long()
        labels = torch.where(contained, labels, 0).reshape(len(labels), *patch)
        if self._all_have_labels:
            return images, labels, None
        return images, labels, self._labelled_on_device[volume]


def _torch_dtype(names: Sequence[str]) -> torch.dtype:
    """A type that holds every case's values exactly."""
    common = np.result_type(*(np.dtype(name) for name in set(names)))
    wider = {"uint16": torch.int32, "uint32": torch.int64}.get(common.name)
    return wider or getattr(torch, common.name)


def _nearest_with_room(total_bytes: int, device: torch.device) -> Residence:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if total_bytes < SHARE_OF_FREE_MEMORY * free:
            return "device"
    if total_bytes < SHARE_OF_FREE_MEMORY * free_host_bytes():
        return "host" if device.type == "cuda" else "device"
    return "disk"
