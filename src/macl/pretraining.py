"""The pre-training task: a method on a backbone, what it hands on, and the watch for collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from macl.config import PretrainSettings, validate
from macl.plugins import Backbone, Method, MethodModule
from macl.progress import say

NEAR_UNIFORM = 0.98
"""Share of the uniform solution's loss from which on a run is said to stand near it."""


def settle(settings: PretrainSettings, method: Method, backbone: Backbone) -> PretrainSettings:
    """Settings with the plug-ins' own filled in, and a slice side that the network can take.

    Raises:
        MaclError: a setting of the method or the backbone does not fit.
    """
    own = validate(method.Settings, settings.method_settings, where="method_settings")
    network = validate(backbone.Settings, settings.backbone_settings, where="backbone_settings")
    multiple = method.side_multiple(own)
    size = math.ceil(settings.training.size / multiple) * multiple
    if size != settings.training.size:
        say(f"Slices of {settings.training.size}² are padded to {size}²: {method.name} takes multiples of {multiple}.")
    changed = {
        "method_settings": own.model_dump(mode="json"),
        "backbone_settings": network.model_dump(mode="json"),
        "training": settings.training.model_copy(update={"size": size}),
    }
    return settings.model_copy(update=changed)


def build_task(
    settings: PretrainSettings, method: Method, backbone: Backbone, channels: int, seed: int
) -> MethodModule:
    """The method on a backbone with as many decoder blocks as it trains, with weights drawn from the seed."""
    own = validate(method.Settings, settings.method_settings, where="method_settings")
    network = validate(backbone.Settings, settings.backbone_settings, where="backbone_settings")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.build(own, backbone.build(network, channels, method.decoder_blocks(own)))


def handed_on(task: MethodModule, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a task's tensors those worth transplanting, under the backbone's names."""
    prefixes = tuple(f"backbone.{prefix}" for prefix in task.handed_on())
    return {name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith(prefixes)}


def about_weights(settings: PretrainSettings, method: Method, channels: tuple[str, ...]) -> dict[str, Any]:
    """What the header of `weights.safetensors` says."""
    own = validate(method.Settings, settings.method_settings, where="method_settings")
    return {
        "kind": "pretrain", "method": settings.method, "method_settings": settings.method_settings,
        "decoder_blocks": method.decoder_blocks(own),
        "backbone": settings.backbone, "backbone_settings": settings.backbone_settings, "channels": list(channels),
    }  # fmt: skip


class CollapseWatch:
    """Warns once where a run stands near the solution in which all features are equal.

    Args:
        task: tells the loss there.
        batch_size: slices a batch.
        steps: of the whole run; the first tenth, in which every run passes there, is not watched.
    """

    def __init__(self, task: MethodModule, batch_size: int, steps: int) -> None:
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
            say(
                f"Warning: at step {step} {name} is {values[name]:.3f}, near {uniform:.3f}, where all features are equal "
                f"(feature spread {values.get('feature_spread', float('nan')):.3f}): nothing is being learned yet; "
                "if it stays so, change training.learning_rate."
            )
