"""How weights move: learning rates, optimisers and the moving average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from macl.config import TrainingSettings


def learning_rate(settings: TrainingSettings, step: int, steps: int, steps_per_epoch: int) -> float:
    """Of step 0 … `steps` − 1: a linear rise over the warm-up, then a cosine to the floor."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    floor = settings.learning_rate_floor
    return floor + (settings.learning_rate - floor) * 0.5 * (1.0 + math.cos(math.pi * share))


def make_optimiser(settings: TrainingSettings, module: nn.Module, fused: bool = False) -> torch.optim.Optimizer:
    """The recipe's optimiser over everything in `module` that learns; `fused`: in one kernel for all parameters."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    match settings.optimiser:
        case "sgd":
            momentum = settings.momentum
            optimiser = torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay, fused=fused)
            if fused and momentum > 0:
                # The fused kernel wants the momentum of every parameter, also of those whose first gradient comes later.
                optimiser.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in parameters})
            return optimiser
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=fused)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)


class MovingAverage:
    """An exponential moving average of a module's floating-point tensors, warmed up so that short runs have one too."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        state = module.state_dict(keep_vars=True)
        self.source = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        self.average = {name: tensor.detach().clone() for name, tensor in self.source.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the module as it stands after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        towards = [tensor.detach() for tensor in self.source.values()]
        torch._foreach_lerp_(list(self.average.values()), towards, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the average inside the block, and its own tensors again after it."""
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
    """The optimiser's moments as named tensors, `<parameter number>.<moment>`."""
    state = optimiser.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, moments in state.items()
        for name, value in moments.items()
        if isinstance(value, Tensor)
    }


def load_optimiser_tensors(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take back what `optimiser_tensors` gave, in the memory format of the parameters, which fused kernels rely on."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, moment = name.partition(".")
        parameter = parameters[int(number)]
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        moments.setdefault(int(number), {})[moment] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
