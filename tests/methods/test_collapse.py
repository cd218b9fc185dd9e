"""What keeps methods without negatives from collapsing: taken away, the features come together.

A fixed number of steps on random textures, of which strong views leave little to recognise. Were
something easily told in every view, such as whether a slice is bright, a SimSiam without its
stop-gradient could do without a common point: the BatchNorm at the end of its projector keeps the
mean of a batch at zero, and two opposite groups fulfil that as well as one point and a few outliers
do. They are a collapse too, onto a line, but none that the spread sees. In a batch of some dozens
outliers weigh little.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

from fakes.networks import method as build
from macl.augmentation.views import STRONG_VIEWS
from macl.config.settings import AugmentationSettings, SpatialSettings, TrainingSettings
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.engine.optimisation import make_optimiser

SEEDS = range(int(os.environ.get("MACL_TEST_SEEDS", "3")))
SIDE = 32
VIEWS = AugmentationSettings(
    spatial=SpatialSettings(elastic_alpha=(0, 0), interpolation="bilinear"),
    intensity=STRONG_VIEWS.intensity,
)


def textures(count: int) -> torch.Tensor:
    """(count, 1, SIDE, SIDE) smooth noise."""
    coarse = torch.randn(count, 1, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, scale_factor=4, mode="bicubic")
    return smooth / smooth.std()


def final_spread(method: str, seed: int, steps: int, slices: int, rate: float, **own) -> float:
    """Mean feature spread over the last five of some steps of SGD, each with all slices."""
    torch.manual_seed(seed)
    settings = {"hidden": 64, "projection": 32, "views": VIEWS.model_dump(), **own}
    task = build(method, settings, width=4).train()
    optimiser = make_optimiser(TrainingSettings(optimiser="sgd", learning_rate=rate), task)
    images, numbers, spreads = textures(slices), torch.arange(slices), []
    for number in range(steps):
        step = task.step(
            Batch(
                images,
                torch.ones(slices, 3),
                SampleRng(seed, number, numbers),
                progress=number / steps,
            )
        )
        step.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        spreads.append(float(step.logged["feature_spread"]))
    return sum(spreads[-5:]) / 5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("method", "safeguard", "steps", "slices", "rate"),
    [("byol", "predictor", 30, 24, 0.05), ("simsiam", "stop_gradient", 60, 48, 0.1)],
)
def test_without_its_safeguard_it_collapses(method, safeguard, steps, slices, rate, seed):
    intact, bare = (
        final_spread(method, seed, steps, slices, rate, **{safeguard: on}) for on in (True, False)
    )
    assert intact > 0.3
    assert bare < 0.5 * intact
