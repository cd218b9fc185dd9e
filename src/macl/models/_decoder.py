"""What the decoders of several networks are built of."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from macl.models.layers import resize


class Decoder(nn.Module):
    """Decoder blocks, deepest first; each takes the map below and the encoder's map of its size."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, features: list[Tensor], blocks: int | None = None) -> list[Tensor]:
        """Encoder maps, finest first → bottleneck and the output of each block."""
        maps = [features[-1]]
        for block, skip in zip(self.blocks[:blocks], features[-2::-1], strict=False):
            maps.append(block(maps[-1], skip))
        return maps


class AddingBlock(nn.Module):
    """A decoder block that narrows a map, enlarges it, adds the encoder's, and refines the sum."""

    def __init__(self, narrow: nn.Module, refine: nn.Module | None = None) -> None:
        super().__init__()
        self.narrow, self.refine = narrow, refine or nn.Identity()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in, *size) and (B, C, *larger) → (B, out, *larger)."""
        return self.refine(resize(self.narrow(x), skip.shape[2:]) + skip)
