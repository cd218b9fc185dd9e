"""nnU-Net's checkpoints: its names for the tensors of its network, and ours for the same tensors.

nnU-Net's state holds a tensor under several names: each convolution and norm also as a numbered
module of its block (`conv` is `all_modules.0`, `norm` is `all_modules.1`), and the whole encoder
again as part of the decoder (`decoder.encoder.…`). Our names are the plain ones. The heads are
`decoder.seg_layers.<stage>` there, deepest first.

A checkpoint of nnU-Net keeps the plan that it was trained with, so that its network is known; so
does one of nnssl, in another place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from macl.models._nnunet_plans import NnunetArchitecture, architecture_of
from macl.models.conversion.nnssl import ADAPTATION, nnssl_architecture
from macl.utils.checkpoint import Checkpoint
from macl.utils.errors import MaclError

NETWORK_WEIGHTS = "network_weights"
"""The entry of a checkpoint that holds the network's state."""
ABOUT = "macl"
"""The entry of a checkpoint exported by macl that describes it; nnU-Net passes over it."""

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


def to_checkpoint(
    tensors: Mapping[str, Tensor], decoder_stages: int, about: Mapping[str, Any]
) -> dict[str, Any]:
    """A checkpoint that nnU-Net's `-pretrained_weights` takes, of all tensors of a network.

    Args:
        tensors: of the whole network or segmenter, under our names.
        decoder_stages: of the whole network.
        about: JSON-able description, which macl reads again.
    """
    state = {
        name: tensor.detach().cpu()
        for own, tensor in tensors.items()
        for name in nnunet_names(own, decoder_stages)
    }
    return {NETWORK_WEIGHTS: state, ABOUT: dict(about)}


def nnunet_checkpoint(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """What a checkpoint of nnU-Net holds, under our names, and its network.

    Args:
        content: of the file.
        path: the file, for messages.

    Raises:
        MaclError: it holds no tensors of an encoder, or its plan is of a network not built here.
    """
    state = {
        str(name).removeprefix("module.").removeprefix("_orig_mod."): tensor
        for name, tensor in content[NETWORK_WEIGHTS].items()
        if isinstance(tensor, Tensor)
    }
    tensors = from_nnunet_names(state)
    kernels = [
        tensor.ndim - 2
        for name, tensor in tensors.items()
        if name.startswith("encoder.") and tensor.ndim in (4, 5)
    ]
    if not kernels:
        raise MaclError(
            f"{path} holds no network of nnU-Net's under {NETWORK_WEIGHTS} (encoder.…, decoder.…): "
            "name a checkpoint_final.pth of nnU-Net v2."
        )
    return Checkpoint(tensors, {"kind": "finetune", "dims": kernels[0], **_network(content, path)})


def _network(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The backbone with its settings, as far as a checkpoint tells."""
    described = content.get(ABOUT)
    if isinstance(described, Mapping):
        return {
            name: described[name] for name in ("backbone", "backbone_settings") if name in described
        }
    if ADAPTATION in content:
        architecture = nnssl_architecture(content[ADAPTATION], path)
        return {} if architecture is None else _nnunet("3d_fullres", architecture)
    trained = content.get("init_args")
    if not isinstance(trained, Mapping) or not isinstance(trained.get("plans"), Mapping):
        return {}
    name = str(trained.get("configuration"))
    return _nnunet(name, architecture_of(trained["plans"], name, path))


def _nnunet(configuration: str, architecture: NnunetArchitecture) -> dict[str, Any]:
    plan = architecture.model_dump(mode="json")
    settings = {"configuration": configuration, "architecture": plan}
    return {"backbone": "nnunet", "backbone_settings": settings}
