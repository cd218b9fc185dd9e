"""Pre-training: the contract of a method, how its settings are resolved, and the watch for
collapse."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from macl.config.settings import PluginSettings, PretrainSettings
from macl.data.sampling import EpochSampler, GroupedSampler, Sampler
from macl.data.windows import Volumes
from macl.engine.task import Quantity, Task
from macl.models.network import Network, Strides, total_stride
from macl.tasks.networks import (
    fitted_patch,
    plugin_settings,
    require_bottleneck,
    resolve_network,
)
from macl.utils.errors import MaclError
from macl.utils.progress import warn

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


class Method(Task):
    """A way to pre-train: a network with the heads and losses that stand on it.

    A method is built as `method(settings, network)`, the network having as many decoder blocks as
    the method trains.

    Attributes:
        Settings: its settings; their defaults are its paper's.
        needs_neighbours: whether batches must bring a neighbouring patch of every patch.
        contrasts_positions: whether patches at similar positions are positives of each other.
        fewest_patches: how many patches a batch needs for the method to learn anything.
        transferable_prefixes: names of the network's tensors that fine-tuning takes over begin with
            these.
    """

    Settings: ClassVar[type[PluginSettings]]
    needs_neighbours: ClassVar[bool] = False
    contrasts_positions: ClassVar[bool] = False
    fewest_patches: ClassVar[int] = 2

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

    @classmethod
    def require_patch(cls, settings: Any, patch: tuple[int, ...], strides: Strides) -> None:
        """Check that the method can learn from patches of these sides.

        Raises:
            MaclError: it cannot.
        """

    @abstractmethod
    def uniform_losses(self, batch_size: int) -> dict[str, float]:
        """Logged losses that show collapse, with their values where all features are equal, for
        this many contrasted patches; empty if no logged value shows it."""


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
    method.require_patch(own, patch, strides)
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


def pretraining_sampler(settings: PretrainSettings, volumes: Volumes, seed: int) -> Sampler:
    """Draws patches one by one, or in groups at similar positions, as the settings say.

    Raises:
        MaclError: a batch cannot be made of whole groups.
    """
    patch, batch_size = settings.patch, settings.training.batch_size
    patients = settings.patients_per_position
    if patients == 1:
        return EpochSampler(volumes, patch, batch_size, seed)
    return GroupedSampler(volumes, patch, batch_size, seed, patients, settings.position_jitter)


def require_enough_patches(
    settings: PretrainSettings, method: type[Method], patches: int, processes: int = 1
) -> None:
    """Check before the first step that a batch holds enough patches to compare.

    Args:
        settings: resolved.
        method: the method that they name.
        patches: in an epoch.
        processes: that share a batch.

    Raises:
        MaclError: it does not.
    """
    training = settings.training
    share = 1 if training.gather_negatives else processes
    fewest = method.fewest_patches
    others = "or use a method that compares none, such as --method masked"
    if training.batch_size // share < fewest:
        raise MaclError(
            f"The method {settings.method} compares the patches of a batch, so that "
            f"training.batch_size must be {fewest * share} or more, not {training.batch_size}: add "
            f"--set training.batch_size={max(16, fewest * share)}, {others}."
        )
    if patches // share < fewest:
        raise MaclError(
            f"The method {settings.method} compares the patches of a batch, but an epoch has only "
            f"{patches}: add scans, {others}."
        )


def way_out(method: str) -> str:
    """What to do about a run of a method that stands at the uniform solution, in a sentence."""
    longer = "Train longer, or change training.learning_rate"
    if method != "macl":
        return f"{longer}."
    return (
        f"{longer}; with the paper's settings, use --recipe macl-plus, which is made not to "
        "collapse."
    )


class CollapseWatch:
    """Warns once where a run stands near the solution in which all features are equal.

    Args:
        method: the name of the run's method.
        uniform_losses: losses and their values there.
        steps: of the whole run; the first tenth, in which every run passes there, is not watched.
    """

    def __init__(self, method: str, uniform_losses: Mapping[str, float], steps: int) -> None:
        self.method, self.uniform_losses = method, uniform_losses
        self.from_step = steps // 10
        self.warned = False

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        """Look at what was logged at a step."""
        if self.warned or step < self.from_step:
            return
        stuck = [
            name
            for name in at_uniform(values, self.uniform_losses)
            if values[name] < self.uniform_losses[name] / NEAR_UNIFORM
        ]
        if stuck:
            self.warned = True
            spread = values.get("feature_spread", float("nan"))
            name = stuck[0]
            warn(
                f"Warning: at step {step} {name} is {values[name]:.3f}, near "
                f"{self.uniform_losses[name]:.3f}, where all features are equal (feature spread "
                f"{spread:.3f}): nothing is being learned from it yet. {way_out(self.method)}"
            )


def at_uniform(values: Mapping[str, float], uniform_losses: Mapping[str, float]) -> tuple[str, ...]:
    """The losses that stand near their value at the uniform solution."""
    return tuple(
        name
        for name, uniform in uniform_losses.items()
        if values.get(name, 0.0) > NEAR_UNIFORM * uniform
    )


def collapse_verdict(
    method: str,
    log: Iterable[Mapping[str, float]],
    uniform_losses: Mapping[str, float],
    steps: int,
) -> tuple[str, ...]:
    """The losses that stand near the uniform solution over the last tenth of a run, and say so.

    Args:
        method: the name of the run's method.
        log: entries with their step.
        uniform_losses: losses and their values there.
        steps: of the whole run.
    """
    last = [entry for entry in log if entry["step"] > steps - max(1, steps // 10)]
    means = {
        name: fmean(values)
        for name in uniform_losses
        if (values := [entry[name] for entry in last if name in entry])
    }
    stuck = at_uniform(means, uniform_losses)
    if stuck:
        ends = ", ".join(
            f"{name} {means[name]:.3f} of {uniform_losses[name]:.3f}" for name in stuck
        )
        warn(
            f"Warning: the run ended no better than with all features equal ({ends}): it learned "
            f"nothing from {'them' if len(stuck) > 1 else 'it'}. {way_out(method)}"
        )
    return stuck
