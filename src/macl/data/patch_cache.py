"""The slices of a store's cases, wherever they live: on the device when they fit, else in host memory, else in the store.

All three hand the same pixels, in the store's own integers, to one gathering step on the device, which crops, pads and
normalises.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.data.store import ArrayKind, Store
from macl.utils.ranks import this_rank
from macl.utils.errors import MaclError

Residence = Literal["device", "host", "disk"]

SHARE_OF_FREE_MEMORY = 0.5
READING_THREADS = 8


@dataclass(frozen=True)
class Pixels:
    """The values of some slices in one row, and where each slice starts in it."""

    images: Tensor
    labels: Tensor | None
    starts: Tensor
    """(B,) int64: a slice's place among pixels of one channel; the images' place is this times the channels."""


def kept_slices(store: Store, cases: Iterable[str], minimum_content: float) -> dict[str, np.ndarray]:
    """Case → the numbers (n,) of its slices of which at least this share is not air; cases without any are left out.

    Raises:
        MaclError: no slice is left, or the store does not know its slices' content.
    """
    kept = {name: store.slices_with(name, minimum_content) for name in cases}
    kept = {name: numbers for name, numbers in kept.items() if len(numbers)}
    if not kept:
        raise MaclError(
            f"No slice of {store.path} has a content of {minimum_content:g} or more: choose a smaller minimum_content."
        )
    return kept


class PatchCache:
    """The slices of some cases of a store, of any sizes.

    Args:
        store: where the slices are.
        cases: names of the cases, in the order that numbers the slices.
        labelled: whether labels are wanted too.
        device: where batches are made.
        residence: where the slices live; None: the nearest to the device that has room.
        minimum_content: share of a slice that must not be air; others are left out, positions stay those in the volume.

    Raises:
        MaclError: a case is missing or broken, or no slice is left.
    """

    def __init__(
        self,
        store: Store,
        cases: Sequence[str],
        labelled: bool,
        device: torch.device,
        residence: Residence | None = None,
        minimum_content: float = 0.0,
    ) -> None:
        self.store, self.device, self.labelled = store, device, labelled
        kept = kept_slices(store, cases, minimum_content)
        self.cases = [store.case(name) for name in kept]
        self.channels = len(store.index.channels)
        counts = np.array([case.slices for case in self.cases])
        pixels = np.array([case.size[1] * case.size[2] for case in self.cases])
        self.case_of_slice = np.repeat(np.arange(len(self.cases)), [len(kept[case.name]) for case in self.cases])
        self.number_in_case = np.concatenate([kept[case.name] for case in self.cases])
        sizes = pixels[self.case_of_slice]
        self.starts = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)
        self.pixels_of_slice = sizes
        self.dtype = _torch_dtype([case.arrays["image"].dtype for case in self.cases])
        self.total_bytes = int(sizes.sum()) * (self.channels * self.dtype.itemsize + labelled)
        self.residence = residence or _nearest_with_room(self.total_bytes, device)

        def on_device(values: np.ndarray | list, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(np.asarray(values), dtype=dtype).to(device)

        self.positions = on_device((self.number_in_case + 1) / counts[self.case_of_slice], torch.float32)
        self.sizes = on_device(np.array([case.size[1:] for case in self.cases])[self.case_of_slice], torch.int64)
        numbers = [case.normalisation for case in self.cases]
        self.normalisation = on_device([(n.low, n.high, n.mean, n.deviation) for n in numbers], torch.float32)
        self.case_index = on_device(self.case_of_slice, torch.int64)
        self._resident = self._load() if self.residence != "disk" else None
        self._readers = ThreadPoolExecutor(READING_THREADS) if self.residence == "disk" else None
        self._starts_on_device = on_device(self.starts, torch.int64)

    def __len__(self) -> int:
        return len(self.starts)

    def _load(self) -> Pixels:
        where = self.device if self.residence == "device" else torch.device("cpu")
        total = int(self.pixels_of_slice.sum())
        images = torch.empty(total * self.channels, dtype=self.dtype)
        labels = torch.empty(total, dtype=torch.uint8) if self.labelled else None
        firsts = np.searchsorted(self.case_of_slice, np.arange(len(self.cases) + 1))

        def fill(case: int) -> None:
            start = int(self.starts[firsts[case]])
            numbers = self.number_in_case[firsts[case] : firsts[case + 1]]
            values = self._read(case, "image", numbers)
            images[start * self.channels : start * self.channels + len(values)] = values
            if labels is not None:
                values = self._read(case, "label", numbers)
                labels[start : start + len(values)] = values

        with ThreadPoolExecutor(READING_THREADS) as readers:
            list(readers.map(fill, range(len(self.cases))))
        return Pixels(images.to(where), labels if labels is None else labels.to(where), torch.from_numpy(self.starts))

    def _read(self, case: int, kind: ArrayKind, numbers: np.ndarray) -> Tensor:
        first, last = int(numbers[0]), int(numbers[-1])
        values = self.store.read(self.cases[case].name, kind, (slice(first, last + 1), None, None))
        values = np.moveaxis(values, 0, 1) if kind == "image" else values
        if len(numbers) < len(values):
            values = values[numbers - first]
        wanted = self.dtype if kind == "image" else torch.uint8
        if values.dtype == np.uint16:
            values = values.astype(np.int32)
        return torch.from_numpy(np.ascontiguousarray(values)).to(wanted).flatten()

    def fetch(self, slices: np.ndarray) -> Pixels:
        """The pixels of the slices with these numbers (B,), on the device (asynchronously where that is a GPU)."""
        if self.residence == "device" and self._resident is not None:
            index = torch.from_numpy(slices).to(self.device, non_blocking=True)
            return Pixels(self._resident.images, self._resident.labels, self._starts_on_device[index])
        pieces = self._pieces(slices)
        images = torch.cat([image for image, _ in pieces])
        labels = torch.cat([label for _, label in pieces if label is not None]) if self.labelled else None
        starts = np.concatenate(([0], np.cumsum(self.pixels_of_slice[slices])[:-1]))

        def send(values: Tensor) -> Tensor:
            if self.device.type == "cuda":
                values = values.pin_memory()
            return values.to(self.device, non_blocking=True)

        return Pixels(send(images), labels if labels is None else send(labels), send(torch.from_numpy(starts)))

    def _pieces(self, slices: np.ndarray) -> list[tuple[Tensor, Tensor | None]]:
        if self._readers is not None:
            return list(self._readers.map(self._read_slice, slices.tolist()))
        assert self._resident is not None
        resident, pieces = self._resident, []
        for number in slices.tolist():
            start, count = int(self.starts[number]), int(self.pixels_of_slice[number])
            image = resident.images[start * self.channels : (start + count) * self.channels]
            pieces.append((image, None if resident.labels is None else resident.labels[start : start + count]))
        return pieces

    def _read_slice(self, number: int) -> tuple[Tensor, Tensor | None]:
        case, numbers = int(self.case_of_slice[number]), self.number_in_case[number : number + 1]
        label = self._read(case, "label", numbers) if self.labelled else None
        return self._read(case, "image", numbers), label

    def neighbours(self, slices: np.ndarray) -> np.ndarray:
        """(B,) slice numbers → their neighbours': the next of the volume, the one before for its last, itself if alone."""
        case = self.case_of_slice
        following = np.minimum(slices + 1, len(self) - 1)
        before = np.maximum(slices - 1, 0)
        otherwise = np.where(case[before] == case[slices], before, slices)
        return np.where((case[following] == case[slices]) & (following > slices), following, otherwise)

    def gather(self, pixels: Pixels, rng: SampleRng, size: int, numbers: Tensor | None = None) -> Batch:
        """Crop at random where a slice is larger than `size`, pad with 0 around where it is smaller, and normalise.

        `numbers` (B,) says whose pixels these are, where they are not the draws' own slices.
        """
        numbers = rng.samples if numbers is None else numbers
        rows, columns = self.sizes[numbers].unbind(-1)
        y, inside_y = _window(rows, size, rng.uniform("crop/row"))
        x, inside_x = _window(columns, size, rng.uniform("crop/column"))
        inside = inside_y[:, :, None] & inside_x[:, None, :]
        place = torch.where(inside, y[:, :, None] * columns[:, None, None] + x[:, None, :], 0)
        channel = torch.arange(self.channels, device=self.device)[None, :, None, None]
        area = (rows * columns)[:, None, None, None]
        image_place = pixels.starts[:, None, None, None] * self.channels + channel * area + place[:, None]
        low, high, mean, deviation = self.normalisation[self.case_index[numbers]][..., None, None].unbind(1)
        images = pixels.images[image_place].float()
        images = (torch.minimum(torch.maximum(images, low), high) - mean) / deviation
        images = torch.where(inside[:, None], images, 0.0)
        labels = None
        if pixels.labels is not None:
            values = pixels.labels[pixels.starts[:, None, None] + place].long()
            labels = torch.where(inside, values, 0)
        middle = torch.full_like(self.positions[numbers], 0.5)
        centres = torch.stack((self.positions[numbers], middle, middle), dim=1)
        return Batch(images, centres, rng, labels)


def _window(sides: Tensor, size: int, unit: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) slice sides → (B, size) coordinates in the slice, and which of them lie in it."""
    extra = sides - size
    at_random = (unit * (extra + 1)).floor().long().minimum(extra)
    start = torch.where(extra > 0, at_random, torch.div(extra, 2, rounding_mode="floor"))
    place = start[:, None] + torch.arange(size, device=sides.device)
    return place, (place >= 0) & (place < sides[:, None])


def _torch_dtype(names: Sequence[str]) -> torch.dtype:
    """A type that holds every case's values exactly."""
    common = np.result_type(*(np.dtype(name) for name in set(names)))
    return {"uint16": torch.int32, "uint32": torch.int64}.get(common.name) or getattr(torch, common.name)


def _nearest_with_room(total_bytes: int, device: torch.device) -> Residence:
    if device.type == "cuda" and total_bytes < SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]:
        return "device"
    if total_bytes < SHARE_OF_FREE_MEMORY * _free_host_bytes():
        return "host" if device.type == "cuda" else "device"
    return "disk"


def _free_host_bytes() -> int:
    """Memory to be had for each process without swapping, as Linux tells it; half of all memory elsewhere."""
    with contextlib.suppress(OSError):
        available = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        if available:
            return int(available[1]) * 1024 // this_rank().local_world_size
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // this_rank().local_world_size
