"""No step asks the host or copies from it while the device computes, shown on PyTorch's device
without values ("meta").

There a tensor has a shape and a place alone: whatever would wait for a value (`item`, `nonzero`, a
comparison in Python) fails, and a tensor of the host that slips in is seen.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fakes.loading import make_loader
from fakes.networks import method
from fakes.toy_store import write_toy_store
from macl.augmentation.regions import random_blocks
from macl.augmentation.views import small_view, view
from macl.config.settings import (
    AugmentationSettings,
    FinetuneSettings,
    IntensitySettings,
    TrainingSettings,
)
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.rng import SampleRng
from macl.engine.compiling import to_device_layout
from macl.engine.optimisation import MovingAverage, make_optimiser, optimiser_tensors
from macl.plugins import find, names
from macl.tasks.segmentation import SegmentationTask, build_segmenter

META = torch.device("meta")
SMALL = {
    "queue": 8,
    "prototypes": 8,
    "hidden": 16,
    "projection": 8,
    "small_crops": 1,
    "discriminator_width": 2,
}
EVERY_CHANGE = IntensitySettings(
    noise=0.5, blur=0.5, brightness=0.5, contrast=0.5, low_resolution=0.5, gamma=0.5
)


class OnTheDevice(TorchDispatchMode):
    """Fails where a computation mixes tensors of the host with the device's.

    Copies for which the host does not wait may pass, and so may a single number, which kernels take
    along.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        copied = "copy" in func.name()
        strays = [t for t in tensors if t.device != META and (t.ndim > 0 or copied)]
        waits = not (copied and kwargs.get("non_blocking"))
        if strays and waits and any(t.device == META for t in tensors):
            raise AssertionError(
                f"{func.name()} mixes host and device: {[tuple(t.shape) for t in strays]}"
            )
        return result


@pytest.fixture(autouse=True)
def without_values(monkeypatch) -> None:
    """What PyTorch does otherwise on this device than on a GPU."""
    make = torch.tensor

    def tensor(data: Any, **options: Any) -> Tensor:
        assert options.get("device") != META, (
            "Numbers of Python are copied to a device, for which the host waits."
        )
        return make(data, **options)

    monkeypatch.setattr(torch, "tensor", tensor)
    # Autocast does not know the device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.fixture
def batches(tmp_path) -> Loader:
    store = write_toy_store(tmp_path / "store", patients=3, slices=4, side=60, channels=2)
    bank = PatchCache(store, [case.name for case in store.index.cases], True, META, "device")
    return make_loader(bank, 6, (64, 64), seed=0, neighbours=True)


def train(task: Any, batches: Loader, starts: tuple[int, ...]) -> None:
    """A step from each of these on, with gradients, optimiser and moving average."""
    to_device_layout(task, META)
    optimiser, average = make_optimiser(TrainingSettings(), task), MovingAverage(task, 0.9)
    with OnTheDevice():
        for start in starts:
            step = task.step(next(batches.between(start, start + 2)))
            step.loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            average.update(start + 1)
            assert all(
                value.device == META and value.ndim == 0
                for value in (step.loss, *step.logged.values())
            )


@pytest.mark.parametrize("name", names("methods"))
def test_pre_training_stays_on_the_device(name: str, batches: Loader) -> None:
    known = find("methods", name).Settings.model_fields
    settings = {key: value for key, value in SMALL.items() if key in known}
    train(method(name, settings, width=2, in_channels=2), batches, (0, 8))


@pytest.mark.parametrize("patch", [(32, 48), (32, 32, 48), (8, 32, 48)])
def test_views_stay_on_the_device(patch: tuple[int, ...]) -> None:
    images = torch.zeros(2, 1, *patch, device=META)
    rng = SampleRng(0, 3, torch.arange(2, device=META))
    settings = AugmentationSettings(intensity=EVERY_CHANGE)
    with OnTheDevice():
        assert view(images, rng, settings).shape == images.shape
        window = small_view(images, rng, settings, 0.5, (4,) * len(patch))
        assert window.shape[2:] == tuple(side // 2 for side in patch)
        assert random_blocks(rng, patch, 16, 0.5).device == META


@pytest.mark.parametrize("recipe", ["cross_entropy", "cross_entropy_dice"])
def test_fine_tuning_stays_on_the_device(recipe, batches: Loader) -> None:
    settings = FinetuneSettings(backbone_settings={"width": 2}, loss=recipe)
    changed = settings.augmentation.model_copy(update={"intensity": EVERY_CHANGE})
    settings = settings.model_copy(update={"augmentation": changed})
    segmenter = build_segmenter(settings, find("models", "unet"), channels=2, classes=3)
    train(SegmentationTask(segmenter, settings, ("row", "column")), batches, (0,))


@pytest.mark.parametrize(
    "stray",
    [
        lambda: torch.tensor([1.0, 2.0], device=META),
        lambda: torch.ones(2, device=META) + torch.ones(2),
        lambda: torch.ones(2).to(META),
        lambda: torch.ones(2, device=META).sum().item(),
        lambda: torch.ones(2, device=META)[torch.ones(2, device=META) > 0],
        lambda: 1 if torch.ones((), device=META) > 0 else 0,
    ],
)
def test_what_the_host_would_wait_for_is_seen(stray: Any) -> None:
    with OnTheDevice(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        stray()


def test_moments_lie_where_the_weights_lie() -> None:
    """A fused optimiser of one device's weights does not take another's moments."""
    module = nn.Linear(2, 2)
    to_device_layout(module, META)
    optimiser = make_optimiser(TrainingSettings(optimiser="sgd", momentum=0.9), module, fused=True)
    moments = optimiser_tensors(optimiser)
    assert len(moments) == 2
    assert all(moment.device == META for moment in moments.values())
