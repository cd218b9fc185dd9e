"""MONAI's DynUNet: nnU-Net's plain network of two convolutions a stage, under other names.

    input_block, downsamples.0 …, bottleneck   encoder.stages.0 …
    upsamples.0 …, deepest first               decoder.transpconvs.0 …, decoder.stages.0 …
    output_block                               head
    deep_supervision_heads.0 …, finest first   deep_heads …, deepest first

Its convolutions have no bias, which InstanceNorm would remove. A state does not tell strides: they
are the kernels of the transposed convolutions, as MONAI's guide has it. Its residual blocks
(`res_block`) differ from nnU-Net's, and so do decoders where kernels differ from stage to stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from macl.models._nnunet_plans import NnunetArchitecture
from macl.utils.checkpoint import Checkpoint
from macl.utils.errors import MaclError

_WRAPPERS = ("state_dict", "model", "network")
_BASIC_UNET = "conv_0.conv_0.conv.weight"
_FIRST = "input_block.conv1.conv.weight"


def monai_checkpoint(content: object, path: Path) -> Checkpoint | None:
    """What a file of DynUNet's weights holds, under our names, and its network.

    Args:
        content: of the file: a state, or a mapping that holds one.
        path: the file, for messages.

    Returns:
        None: it is none of MONAI's.

    Raises:
        MaclError: it is of a network of MONAI's that is not built here.
    """
    state = _state(content)
    if _BASIC_UNET in state:
        raise MaclError(
            f"{path} holds MONAI's BasicUNet, whose norm, activation and pooling no network here "
            "has: its weights would fit by shape alone. Start from a DynUNet, or from scratch."
        )
    if _FIRST not in state:
        return None
    if any(".conv3." in name or name.endswith("running_mean") for name in state):
        raise MaclError(
            f"{path} holds a DynUNet with residual blocks or BatchNorm, which is not built here: "
            "start from one with res_block=False and InstanceNorm."
        )
    blocks = [name.split(".")[1] for name in state if name.startswith("upsamples.")]
    stages = 1 + len({*blocks})
    named = {_renamed(name, stages): tensor for name, tensor in state.items()}
    tensors = {name: tensor for name, tensor in named.items() if name}
    try:
        architecture = _architecture(tensors, stages)
    except (KeyError, ValueError):
        raise MaclError(
            f"{path} is no whole DynUNet: save the network's state_dict() and try again."
        ) from None
    for block, kernel in enumerate(architecture.kernels[-2::-1]):
        if tensors[f"decoder.stages.{block}.convs.0.conv.weight"].shape[2:] != kernel:
            raise MaclError(
                f"{path} holds a DynUNet whose kernels differ from stage to stage, and its decoder "
                "takes them from another stage than nnU-Net's: it is not built here."
            )
    about = {
        "kind": "finetune",
        "dims": architecture.dims,
        "backbone": "nnunet",
        "backbone_settings": {
            "configuration": "2d" if architecture.dims == 2 else "3d_fullres",
            "architecture": architecture.model_dump(mode="json"),
        },
    }
    return Checkpoint(tensors, about)


def _state(content: object) -> dict[str, Tensor]:
    """The tensors of a state, whatever wraps it."""
    if not isinstance(content, Mapping):
        return {}
    inner = next(
        (content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), content
    )
    return {
        str(name).removeprefix("module."): tensor
        for name, tensor in inner.items()
        if isinstance(tensor, Tensor)
    }


def _renamed(name: str, stages: int) -> str:
    """Our name of a tensor; "": it is an alias of another."""
    place, _, rest = name.partition(".")
    if place == "output_block":
        return rest.replace("conv.conv.", "head.")
    if place == "deep_supervision_heads":
        number, _, rest = rest.partition(".")
        return rest.replace("conv.conv.", f"deep_heads.{stages - 3 - int(number)}.")
    if place in ("input_block", "bottleneck"):
        level = 0 if place == "input_block" else stages - 1
        return _in_block(f"encoder.stages.{level}.0", rest)
    number, _, rest = rest.partition(".")
    if place == "downsamples":
        return _in_block(f"encoder.stages.{int(number) + 1}.0", rest)
    if place == "upsamples" and rest.startswith("transp_conv.conv."):
        return rest.replace("transp_conv.conv.", f"decoder.transpconvs.{number}.")
    if place == "upsamples":
        return _in_block(f"decoder.stages.{number}", rest.removeprefix("conv_block."))
    return ""


def _in_block(stage: str, name: str) -> str:
    found = re.fullmatch(r"(conv|norm)([12])\.(?:conv\.)?(weight|bias)", name)
    if found is None:
        return ""
    module, number, kind = found.groups()
    return f"{stage}.convs.{int(number) - 1}.{module}.{kind}"


def _architecture(tensors: Mapping[str, Tensor], stages: int) -> NnunetArchitecture:
    """The network; KeyError: a tensor is missing."""
    first = [tensors[f"encoder.stages.{level}.0.convs.0.conv.weight"] for level in range(stages)]
    enlarging = [tensors[f"decoder.transpconvs.{block}.weight"] for block in range(stages - 1)]
    strides = tuple(tuple(each.shape[2:]) for each in reversed(enlarging))
    return NnunetArchitecture(
        residual=False,
        features=tuple(each.shape[0] for each in first),
        kernels=tuple(tuple(each.shape[2:]) for each in first),
        strides=((1,) * (first[0].ndim - 2), *strides),
        convolutions=(2,) * stages,
        decoder_convolutions=(2,) * (stages - 1),
        bias="decoder.transpconvs.0.bias" in tensors,
        norm_eps=1e-5,
        norm_affine="encoder.stages.0.0.convs.0.norm.weight" in tensors,
        negative_slope=0.01,
        deep_supervision=any(name.startswith("deep_heads.") for name in tensors),
    )
