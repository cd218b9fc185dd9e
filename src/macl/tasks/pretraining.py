"""Pre-training: the contract of a method, how its settings are resolved, and the watch for
collapse."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from macl.config import PluginSettings, PretrainSettings
from macl.engine.task import Quantity, Task
from macl.models.network import Network, Strides, total_stride
from macl.tasks.networks import (
    fitted_patch,
    plugin_settings,
    require_bottleneck,
    resolve_network,
)
from macl.utils.errors import MaclError
from macl.utils.progress import say

NEAR_UNIFORM = 0.98
"""A run stands near the uniform solution when its loss exceeds this share of that solution's."""

FEATURE_SPREAD = Quantity(
    "Feature spread",
    "How far the normalised features lie apart: 0 means collapsed to one point, 1 spread "
    "evenly over the sphere.",
)
POSITIVES_PER_ANCHOR = Quantity(
    "Positives per anchor",
    "Features that each feature is drawn to, its twin included. At 1 there is only the twin.",
)


class UniformLoss(NamedTuple):
    """The logged loss that shows collapse, and its value where all features are equal."""

    name: str
    value: float


class Method(Task):
    """A way to pre-train: a network with the heads and losses that stand on it.

    A method is built as `method(settings, network)`, the network having as many decoder blocks as
    the method trains.

    Attributes:
        Settings: its settings; their defaults are its paper's.
        needs_neighbours: whether batches must bring a neighbouring patch of every patch.
        contrasts_positions: whether patches at similar positions are positives of each other.
        transferable_prefixes: names of the network's tensors that fine-tuning takes over begin with
            these.
    """

    Settings: ClassVar[type[PluginSettings]]
    needs_neighbours: ClassVar[bool] = False
    contrasts_positions: ClassVar[bool] = False

    def __init__(self, settings: Any, network: Network) -> None:
        super().__init__()
        self.settings = settings
        self.network = network
        self.transferable_prefixes: tuple[str, ...] = ("encoder.",)

    @classmethod
    def trained_decoder_blocks(cls, settings: Any) -> int | None:
        """How many of the deepest decoder blocks it trains; None: all of them."""
        return 0

    @classmethod
    def patch_multiple(cls, settings: Any, strides: Strides) -> tuple[int, ...]:
        """What the sides of a patch must be multiples of, per axis."""
        return total_stride(strides)

    @classmethod
    def smallest_image(
        cls, settings: Any, patch: tuple[int, ...], strides: Strides
    ) -> tuple[int, ...]:
        """Sides of the smallest image that the network sees of a patch."""
        return patch

    @abstractmethod
    def uniform_loss(self, batch_size: int) -> UniformLoss | None:
        """The loss at the uniform solution for this many contrasted patches; None: no logged value
        shows it."""


def resolve_pretraining(
    settings: PretrainSettings,
    method: type[Method],
    network: type[Network],
    spacing_mm: tuple[float, ...] | None = None,
) -> PretrainSettings:
    """Settings with the plug-ins' own filled in as typed objects, and a patch that the network can
    take.

    Args:
        settings: as read from recipe and overrides.
        method, network: the plug-ins that the settings name.
        spacing_mm: of the store along the patch's axes; chooses strides in 3D. None: unknown.

    Raises:
        MaclError: a setting of the method or the network does not fit.
    """
    own = plugin_settings(method, settings.method_settings, "method_settings")
    chosen, strides = resolve_network(
        network, settings.backbone_settings, settings.patch, spacing_mm
    )
    blocks = method.trained_decoder_blocks(own)
    if blocks is not None and blocks >= len(strides):
        raise MaclError(
            f"method_settings.decoder_blocks is {blocks}, but the network has {len(strides) - 1} "
            "decoder blocks: lower "
            "it, or give the network more poolings (backbone_settings.strides)."
        )
    patch = fitted_patch(settings.patch, method.patch_multiple(own, strides), settings.method)
    require_bottleneck(network, method.smallest_image(own, patch, strides), strides)
    return settings.with_patch(patch).model_copy(
        update={"method_settings": own, "backbone_settings": chosen}
    )


def build_method(
    settings: PretrainSettings,
    method: type[Method],
    network: type[Network],
    channels: int,
    seed: int,
) -> Method:
    """The method on a network with as many decoder blocks as it trains, with weights drawn from the
    seed."""
    own = settings.method_settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = method.trained_decoder_blocks(own)
        built = network(
            settings.backbone_settings, channels, dims=settings.dims, decoder_blocks=blocks
        )
        return method(own, built)


def transferable_tensors(task: Method, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a task's tensors those that fine-tuning takes over, under the network's names."""
    prefixes = tuple(f"network.{prefix}" for prefix in task.transferable_prefixes)
    return {
        name.removeprefix("network."): value
        for name, value in tensors.items()
        if name.startswith(prefixes)
    }


def describe_weights(
    settings: PretrainSettings, task: Method, channels: tuple[str, ...]
) -> dict[str, Any]:
    """What the header of `weights.safetensors` says; `settings` are resolved."""
    dumped = settings.model_dump(mode="json")
    named = ("method", "method_settings", "backbone", "backbone_settings", "dims")
    blocks = task.trained_decoder_blocks(settings.method_settings)
    return {"kind": "pretrain", "decoder_blocks": blocks, "channels": list(channels)} | {
        name: dumped[name] for name in named
    }


class CollapseWatch:
    """Warns once where a run stands near the solution in which all features are equal.

    Args:
        task: tells the loss there.
        batch_size: contrasted patches a batch.
        steps: of the whole run; the first tenth, in which every run passes there, is not watched.
    """

    def __init__(self, task: Method, batch_size: int, steps: int) -> None:
        self.uniform = task.uniform_loss(batch_size)
        self.from_step = max(100, steps // 10)
        self.warned = False

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        """Look at what was logged at a step."""
        if self.warned or self.uniform is None or step < self.from_step:
            return
        name, uniform = self.uniform
        if values[name] > NEAR_UNIFORM * uniform:
            self.warned = True
            spread = values.get("feature_spread", float("nan"))
            say(
                f"Warning: at step {step} {name} is {values[name]:.3f}, near {uniform:.3f}, where "
                f"all features are equal (feature spread {spread:.3f}): nothing is being learned "
                "yet; if it stays so, change training.learning_rate."
            )
