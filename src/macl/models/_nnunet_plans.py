"""The architecture that an nnU-Net plan states for a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from macl.config.settings import Settings
from macl.utils.errors import MaclError, listed
from macl.utils.files import read_json

Shape = tuple[int, ...]

PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
CONVOLUTIONS_OF = {PLAIN: "n_conv_per_stage", RESIDUAL: "n_blocks_per_stage"}
"""The class of a network → what a plan calls the number of its convolutions or blocks."""


class NnunetArchitecture(Settings):
    """A U-Net as a plan describes it; stages are numbered from the finest."""

    residual: bool = Field(description="residual blocks in the encoder, after a stem")
    features: Shape = Field(min_length=2, description="channels of every stage")
    kernels: tuple[Shape, ...] = Field(description="of every stage")
    strides: tuple[Shape, ...] = Field(description="of every stage against the one above")
    convolutions: Shape = Field(description="of every stage; if residual, its blocks")
    decoder_convolutions: Shape = Field(description="of every decoder stage, the coarsest first")
    bias: bool = Field(description="of convolutions")
    norm_eps: float
    norm_affine: bool
    negative_slope: float = Field(description="of LeakyReLU")
    deep_supervision: bool

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.strides[0])


def read_architecture(path: Path, configuration: str) -> NnunetArchitecture:
    """Read what a plan says of a configuration's network.

    Args:
        path: an `nnUNetPlans.json` of nnU-Net 2.4 or later.
        configuration: its name, such as "3d_fullres".

    Raises:
        MaclError: the file or the configuration is missing, or it states a network that is not
            built here.
    """
    return architecture_of(read_json(path, "an nnU-Net plan"), configuration, path)


def architecture_of(plans: Mapping[str, Any], configuration: str, path: Path) -> NnunetArchitecture:
    """As `read_architecture`, of a plan that has been read from `path`."""
    stated = configuration_of(plans, configuration, path)
    network = stated.get("architecture")
    if not isinstance(network, Mapping):
        raise MaclError(
            f"{path} describes no architecture for {configuration}: it is of nnU-Net before 2.4, "
            "so plan again with a later one."
        )
    name = str(network.get("network_class_name", "")).rpartition(".")[2]
    if name not in CONVOLUTIONS_OF:
        known = " and ".join(CONVOLUTIONS_OF)
        raise MaclError(
            f"{path} plans a {name or 'network without a name'} for {configuration}, but only "
            f"{known} are known: plan again for one of these."
        )
    try:
        return _architecture(name, dict(network["arch_kwargs"]))
    except (KeyError, TypeError, ValueError) as error:
        raise MaclError(
            f"{path} describes a {name} for {configuration} that is not built here ({error})."
        ) from None


def stated_architecture(architecture: NnunetArchitecture) -> dict[str, Any]:
    """The `architecture` block of a plan that states this network."""
    name = RESIDUAL if architecture.residual else PLAIN
    modules, dims = "torch.nn.modules", architecture.dims
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": len(architecture.features),
            "features_per_stage": list(architecture.features),
            "conv_op": f"{modules}.conv.Conv{dims}d",
            "kernel_sizes": [list(kernel) for kernel in architecture.kernels],
            "strides": [list(stride) for stride in architecture.strides],
            CONVOLUTIONS_OF[name]: list(architecture.convolutions),
            "n_conv_per_stage_decoder": list(architecture.decoder_convolutions),
            "conv_bias": architecture.bias,
            "norm_op": f"{modules}.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": architecture.norm_eps, "affine": architecture.norm_affine},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True, "negative_slope": architecture.negative_slope},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def read_channels(path: Path, configuration: str) -> int | None:
    """How many image channels a plan has; None: it does not say.

    Raises:
        MaclError: the file or the configuration is missing.
    """
    plans = read_json(path, "an nnU-Net plan")
    stated = configuration_of(plans, configuration, path)
    schemes = stated.get("normalization_schemes")
    return len(schemes) if isinstance(schemes, list) and schemes else None


def configuration_of(plans: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A configuration of a plan that has been read from `path`, with what it inherits from others.

    Raises:
        MaclError: there is none of that name, or its network takes another one's masks.
    """
    configurations: Any = plans.get("configurations")
    stated: dict[str, Any] = {}
    following: Any = name
    seen: set[str] = set()
    while following is not None:
        named = isinstance(configurations, Mapping) and isinstance(following, str)
        found = configurations.get(following) if named else None
        if not isinstance(found, Mapping) or following in seen:
            known = listed(sorted(configurations)) if isinstance(configurations, Mapping) else ""
            raise MaclError(
                f"{path} has no configuration {following!r}"
                + (f"; it has {known}." if known else ": it is no nnU-Net plan.")
            )
        seen.add(following)
        stated = {**found, **stated}
        following = found.get("inherits_from")
    if stated.get("previous_stage"):
        raise MaclError(
            f"{name} of {path} takes another network's masks as input: choose 3d_fullres or "
            "3d_lowres."
        )
    return stated


def _architecture(name: str, stated: dict[str, Any]) -> NnunetArchitecture:
    """Typed; KeyError, TypeError or ValueError names what is missing or not known."""
    stages = int(stated.pop("n_stages"))
    dims = {"Conv2d": 2, "Conv3d": 3}[_name(stated.pop("conv_op"))]
    norm, activation = (
        dict(stated.pop(key, None) or {}) for key in ("norm_op_kwargs", "nonlin_kwargs")
    )
    _require(stated, "norm_op", f"InstanceNorm{dims}d")
    _require(stated, "nonlin", "LeakyReLU")
    found = NnunetArchitecture(
        residual=name == RESIDUAL,
        features=_each(stated.pop("features_per_stage"), stages),
        kernels=_each_axis(stated.pop("kernel_sizes"), stages, dims),
        strides=_each_axis(stated.pop("strides"), stages, dims),
        convolutions=_each(stated.pop(CONVOLUTIONS_OF[name]), stages),
        decoder_convolutions=_each(stated.pop("n_conv_per_stage_decoder"), stages - 1),
        bias=bool(stated.pop("conv_bias", False)),
        norm_eps=float(norm.pop("eps", 1e-5)),
        norm_affine=bool(norm.pop("affine", False)),
        negative_slope=float(activation.pop("negative_slope", 0.01)),
        deep_supervision=bool(stated.pop("deep_supervision", True)),
    )
    activation.pop("inplace", None)
    others = {**stated, **norm, **activation}
    more = [f"{key} {value!r}" for key, value in others.items() if value not in (None, {}, False)]
    if more:
        raise ValueError(f"with {listed(more)}")
    if any(step != 1 for step in found.strides[0]):
        raise ValueError(f"its first stage has the stride {list(found.strides[0])}")
    return found


def _name(value: Any) -> str:
    """The last part of a class's path."""
    return str(value).rpartition(".")[2]


def _require(stated: dict[str, Any], key: str, expected: str) -> None:
    found = _name(stated.pop(key, None))
    if found != expected:
        raise ValueError(f"{key} is {found}, not {expected}")


def _each(value: Any, count: int) -> Shape:
    """One whole number for each of `count` stages, of one for all or a list."""
    numbers = (value,) * count if isinstance(value, int) else tuple(map(int, value))
    if len(numbers) != count:
        raise ValueError(f"{list(numbers)} is not one number for each of {count} stages")
    return numbers


def _each_axis(value: Any, count: int, dims: int) -> tuple[Shape, ...]:
    """One number for each stage and axis, of one for all, one for each stage, or all of them."""
    stages = (value,) * count if isinstance(value, int) else tuple(value)
    if len(stages) != count:
        raise ValueError(f"{value} is not one entry for each of {count} stages")
    return tuple(_each(stage, dims) for stage in stages)
