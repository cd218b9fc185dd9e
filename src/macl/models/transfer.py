"""Copies pre-trained tensors into a segmenter, and says what became of each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from macl.utils.errors import MaclError, listed

Outcome = Literal["loaded", "adapted", "fresh", "refused"]


@dataclass(frozen=True)
class TensorTransfer:
    """What became of one tensor of the segmenter."""

    name: str
    shape: tuple[int, ...]
    outcome: Outcome
    source: str | None
    why: str


@dataclass(frozen=True)
class Transfer:
    """What became of all tensors of the segmenter.

    Attributes:
        init: name of the source in messages and records.
        tensors: one entry per tensor of the segmenter.
        unused: names of tensors that only the source has.
    """

    init: str
    tensors: tuple[TensorTransfer, ...]
    unused: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """The tensors that came from the source."""
        taken = ("loaded", "adapted")
        return frozenset(tensor.name for tensor in self.tensors if tensor.outcome in taken)

    def about(self) -> dict[str, Any]:
        """The contents of `transfer.json`."""
        rows = []
        elements: Counter[str] = Counter()
        for tensor in self.tensors:
            row = {**asdict(tensor), "shape": list(tensor.shape), "from": tensor.source}
            del row["source"]
            rows.append(row)
            elements[tensor.outcome] += torch.Size(tensor.shape).numel()
        counts = Counter(tensor.outcome for tensor in self.tensors)
        return {
            "source": self.init,
            "tensors": rows,
            "counts": dict(counts),
            "elements": dict(elements),
            "unused": list(self.unused),
        }

    def table(self) -> str:
        """Counts of tensors by part of the network, outcome and reason; one line if all fresh."""
        if all(tensor.outcome == "fresh" for tensor in self.tensors):
            return f"Weights from {self.init}: all {len(self.tensors)} tensors are fresh."
        counts = Counter((_part(each.name), each.outcome, each.why) for each in self.tensors)
        lines = [
            f"  {part:<21} {outcome:<8} {count:>3} tensors  {why}"
            for (part, outcome, why), count in counts.items()
        ]
        if self.unused:
            count = len(self.unused)
            lines.append(f"  {'not used':<21} {count:>12} tensors  {listed(self.unused)}")
        return "\n".join((f"Weights from {self.init}:", *lines))


def _part(name: str) -> str:
    """The first words of a tensor's name, such as "encoder.levels.0" or "head.weight"."""
    words = name.split(".")
    numbered = words[0] in ("encoder", "decoder") and words[1] != "centre"
    return ".".join(words[: 3 if numbered else 2])


def transplant(init: str, source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Transfer:
    """Copy what fits from `source` into the tensors of `target`, in place.

    A tensor of the same name and shape is loaded. A convolution is adapted to another number of
    input channels so that an image repeated over its channels gives the same maps: from 1 to C
    channels, each takes 1/C of the weights; from C to 1, the weights are summed. Any other
    difference of shape is refused. What the source lacks stays fresh.

    Args:
        init: name of the source in messages and records.
        source: tensors under the network's names.
        target: the segmenter's state, under the same names.
    """
    tensors = tuple(_copy(name, tensor, source.get(name)) for name, tensor in target.items())
    return Transfer(init, tensors, tuple(sorted(set(source) - set(target))))


@torch.no_grad()
def _copy(name: str, target: Tensor, source: Tensor | None) -> TensorTransfer:
    shape = tuple(target.shape)
    if source is None:
        return TensorTransfer(name, shape, "fresh", None, "not in the source")
    if source.shape == target.shape:
        target.copy_(source)
        return TensorTransfer(name, shape, "loaded", name, "same shape")
    adapted = _adapt_channels(source, target)
    if adapted is None:
        why = f"shape {list(source.shape)} does not fit {list(shape)}"
        return TensorTransfer(name, shape, "refused", name, why)
    target.copy_(adapted)
    why = f"{source.shape[1]} → {shape[1]} input channels"
    return TensorTransfer(name, shape, "adapted", name, why)


def _adapt_channels(source: Tensor, target: Tensor) -> Tensor | None:
    """A kernel (out, in, *kernel) for another number of input channels; None if it cannot be."""
    same = source.shape[:1] + source.shape[2:] == target.shape[:1] + target.shape[2:]
    if source.ndim not in (4, 5) or not same:
        return None
    before, after = source.shape[1], target.shape[1]
    if before == 1:
        return source.expand_as(target) / after
    return source.sum(1, keepdim=True) if after == 1 else None


def require_transfer(transfer: Transfer, encoder_only: bool, trained_with: str = "") -> None:
    """Check that the source gave the segmenter its encoder and a part of its decoder.

    Args:
        transfer: of the source into the segmenter.
        encoder_only: whether the encoder is enough.
        trained_with: the source's network, such as "unet with width 16"; empty: unknown.

    Raises:
        MaclError: nothing of the encoder fits, or nothing of the decoder.
    """
    # The counter of a BatchNorm has no shape and fits every network.
    taken = {
        tensor.name.split(".")[0]
        for tensor in transfer.tensors
        if tensor.shape and tensor.outcome in ("loaded", "adapted")
    }
    if "encoder" not in taken:
        reasons = (f"{row.name}: {row.why}" for row in transfer.tensors if row.outcome == "refused")
        network = f"it was trained with {trained_with}: " if trained_with else ""
        raise MaclError(
            f"Nothing of {transfer.init} fits the segmenter's encoder "
            f"({next(reasons, 'no name fits')}): {network}fine-tune with the backbone and "
            "backbone_settings that it was trained with."
        )
    if "decoder" not in taken and not encoder_only:
        raise MaclError(
            f"No decoder tensor of {transfer.init} fits the segmenter: if you want its encoder "
            "alone, add --encoder-only."
        )
