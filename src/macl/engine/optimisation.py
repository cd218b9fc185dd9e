"""Learning rates, optimisers and the moving average of the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from macl.config.settings import TrainingSettings


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """The rate of step 0 … `steps` − 1: a linear warm-up, then a cosine down to the floor."""
    warmup = round(settings.warmup_share * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    floor = settings.learning_rate_floor
    return floor + (settings.learning_rate - floor) * 0.5 * (1.0 + math.cos(math.pi * share))


def make_optimiser(
    settings: TrainingSettings, module: nn.Module, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of the settings over the trainable parameters of `module`.

    Args:
        settings: choose the optimiser and its rates.
        module: what to train.
        fused: whether one kernel updates all parameters.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    match settings.optimiser:
        case "sgd":
            momentum = settings.momentum
            optimiser = torch.optim.SGD(
                parameters, lr=rate, momentum=momentum, weight_decay=decay, fused=fused
            )
            if fused and momentum > 0:
                # The fused kernel needs a momentum even for parameters that get their first
                # gradient later.
                for parameter in parameters:
                    optimiser.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
            return optimiser
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=fused)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)


class MovingAverage:
    """Exponential moving average of a module's floating-point tensors, warmed up for short runs."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        state = module.state_dict(keep_vars=True)
        self.source = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        self.average = {name: tensor.detach().clone() for name, tensor in self.source.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the module as it is after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [tensor.detach() for tensor in self.source.values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1.0 - decay)  # pyright: ignore

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the averaged tensors inside the block, and its own back after it."""
        own = {name: tensor.detach().clone() for name, tensor in self.source.items()}
        _copy(self.average, self.source)
        try:
            yield
        finally:
            _copy(own, self.source)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments as tensors named `<parameter number>.<moment>`."""
    state = optimiser.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, moments in state.items()
        for name, value in moments.items()
        if isinstance(value, Tensor)
    }


def load_optimiser_tensors(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of `optimiser_tensors`.

    They take the memory format of the parameters, which fused kernels rely on.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, moment = name.partition(".")
        parameter = parameters[int(number)]
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        moments.setdefault(int(number), {})[moment] = tensor
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})
