"""The names that nnU-Net gives the tensors of its network, and ours for the same tensors.

nnU-Net's state holds a tensor under several names: each convolution and norm also as a numbered
module of its block (`conv` is `all_modules.0`, `norm` is `all_modules.1`), and the whole encoder
again as part of the decoder (`decoder.encoder.…`). Our names are the plain ones. The heads are
`decoder.seg_layers.<stage>` there, deepest first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_NUMBERED = (("conv", "all_modules.0"), ("norm", "all_modules.1"))
_SEGMENTATION = "decoder.seg_layers."


def nnunet_names(name: str, decoder_stages: int) -> tuple[str, ...]:
    """Every name under which nnU-Net's state holds a tensor of a segmenter, the plain one first.

    Args:
        name: ours, such as "encoder.stages.0.0.convs.0.conv.weight" or "head.weight".
        decoder_stages: of the whole network; the head stands on the last.
    """
    part, _, rest = name.partition(".")
    if part == "head":
        return (f"{_SEGMENTATION}{decoder_stages - 1}.{rest}",)
    if part == "deep_heads":
        return (_SEGMENTATION + rest,)
    names = [name]
    for module, number in _NUMBERED:
        stem, found, kind = name.rpartition(f".{module}.")
        if found:
            names.append(f"{stem}.{number}.{kind}")
    if part == "encoder":
        names += [f"decoder.{each}" for each in names]
    return tuple(names)


def from_nnunet_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an nnU-Net state (`network_weights`) under a segmenter's names.

    Args:
        tensors: the state, which may lack aliases and heads.
    """
    plain = {
        name: tensor
        for name, tensor in tensors.items()
        if ".all_modules." not in name and not name.startswith("decoder.encoder.")
    }
    stages = [
        int(found[1]) for name in plain if (found := re.match(r"decoder\.stages\.(\d+)", name))
    ]
    head = f"{_SEGMENTATION}{max(stages, default=0)}."
    renamed = {}
    for name, tensor in plain.items():
        if name.startswith(head):
            name = "head." + name.removeprefix(head)
        elif name.startswith(_SEGMENTATION):
            name = "deep_heads." + name.removeprefix(_SEGMENTATION)
        renamed[name] = tensor
    return renamed
