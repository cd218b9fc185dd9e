"""Which tensor of a pre-trained network goes where in a segmenter, and the table that says so."""

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
class Transferred:
    """What became of one tensor of the segmenter."""

    name: str
    shape: tuple[int, ...]
    outcome: Outcome
    source: str | None
    why: str


@dataclass(frozen=True)
class Transfer:
    """What became of all of them."""

    init: str
    tensors: tuple[Transferred, ...]
    unused: tuple[str, ...] = ()

    def about(self) -> dict[str, Any]:
        """As it stands in `transfer.json`."""
        rows = [
            {**asdict(row), "shape": list(row.shape), "from": row.source} for row in self.tensors
        ]
        for row in rows:
            del row["source"]
        elements: Counter[str] = Counter()
        for row in self.tensors:
            elements[row.outcome] += torch.Size(row.shape).numel()
        counts = Counter(row.outcome for row in self.tensors)
        return {
            "source": self.init, "tensors": rows, "counts": dict(counts), "elements": dict(elements),
            "unused": list(self.unused),
        }  # fmt: skip

    def table(self) -> str:
        """One line per part of the network: how many tensors were loaded, adapted, left fresh or refused, and why.

        Where nothing came from anywhere, one line in all.
        """
        if all(row.outcome == "fresh" for row in self.tensors):
            return f"Weights from {self.init}: all {len(self.tensors)} tensors are fresh."
        parts: dict[tuple[str, str, str], int] = {}
        for row in self.tensors:
            key = (_part(row.name), row.outcome, row.why)
            parts[key] = parts.get(key, 0) + 1
        lines = [
            f"  {part:<18} {outcome:<8} {count:>3} tensors  {why}"
            for (part, outcome, why), count in parts.items()
        ]
        if self.unused:
            lines.append(
                f"  not used           {len(self.unused):>12} tensors  {listed(self.unused)}"
            )
        return "\n".join((f"Weights from {self.init}:", *lines))


def _part(name: str) -> str:
    pieces = name.split(".")
    return ".".join(
        pieces[: 3 if pieces[0] in ("encoder", "decoder") and pieces[1] != "centre" else 2]
    )


def transplant(init: str, source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Transfer:
    """Copy what fits from `source` into the tensors of `target`, in place.

    A tensor of the same name and shape is loaded. The first convolution is adapted to another number of input channels
    such that a scan repeated over the channels gives the same maps: from 1 to C each channel takes 1/C of the weight,
    from C to 1 the weights are summed. Any other difference of shape is refused; what the source lacks stays fresh.

    Args:
        init: names the source in the table.
        source: tensors under the backbone's names.
        target: the segmenter's state.
    """
    rows = [_place(name, tensor, source.get(name)) for name, tensor in target.items()]
    unused = tuple(sorted(set(source) - set(target)))
    return Transfer(init, tuple(rows), unused)


@torch.no_grad()
def _place(name: str, target: Tensor, source: Tensor | None) -> Transferred:
    shape = tuple(target.shape)
    if source is None:
        return Transferred(name, shape, "fresh", None, "not in the source")
    if source.shape == target.shape:
        target.copy_(source)
        return Transferred(name, shape, "loaded", name, "same shape")
    adapted = _adapt_channels(source, target)
    if adapted is None:
        why = f"shape {list(source.shape)} does not fit {list(shape)}"
        return Transferred(name, shape, "refused", name, why)
    target.copy_(adapted)
    return Transferred(
        name, shape, "adapted", name, f"{source.shape[1]} → {shape[1]} input channels"
    )


def _adapt_channels(source: Tensor, target: Tensor) -> Tensor | None:
    if (
        source.ndim != 4
        or source.shape[0] != target.shape[0]
        or source.shape[2:] != target.shape[2:]
    ):
        return None
    before, after = source.shape[1], target.shape[1]
    if before == 1:
        return source.expand_as(target) / after
    return source.sum(1, keepdim=True) if after == 1 else None


def check(transfer: Transfer, encoder_only: bool) -> None:
    """Refuse a transplantation that did not take.

    Raises:
        MaclError: no tensor of the encoder was taken, or none of the decoder and `encoder_only` is not said.
    """
    # A BatchNorm's counter has no shape and fits between any two networks.
    taken = {
        row.name.split(".")[0]
        for row in transfer.tensors
        if row.shape and row.outcome in ("loaded", "adapted")
    }
    if "encoder" not in taken:
        refused = next(
            (f"{row.name}: {row.why}" for row in transfer.tensors if row.outcome == "refused"),
            "no name fits",
        )
        raise MaclError(
            f"Nothing of {transfer.init} fits the segmenter's encoder ({refused}): "
            "fine-tune with the backbone settings that it was pre-trained with, such as --set backbone_settings.width=32; "
            "a run's are in its run.json."
        )
    if "decoder" not in taken and not encoder_only:
        raise MaclError(
            f"No decoder tensor of {transfer.init} fits the segmenter: if only its encoder is wanted, add --encoder-only."
        )
