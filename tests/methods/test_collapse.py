"""What keeps methods without negatives from collapsing: taken away, the features come together.

Fixed numbers of steps, three seeds each. SimSiam needs the larger batch: in a small one its projector's last BatchNorm can
leave two opposite clusters, a collapse that the spread does not see; with some seeds it does so in this batch too.
"""

from __future__ import annotations

import pytest
import torch

from fakes.toy_store import write_toy_store
from macl.config import AugmentationSettings, SpatialSettings, TrainingSettings
from macl.data.batches import Batches, SliceBank
from macl.optimisation import make_optimiser
from macl.plugins import find
from macl.views import STRONG_VIEWS

VIEWS = AugmentationSettings(
    spatial=SpatialSettings(elastic_alpha=(0, 0), interpolation="bilinear"), intensity=STRONG_VIEWS.intensity
)


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> SliceBank:
    store = write_toy_store(tmp_path_factory.mktemp("collapse") / "toy.store", patients=6, slices=6, side=32)
    cases = [case.name for case in store.index.cases]
    return SliceBank(store, cases, labelled=False, device=torch.device("cpu"))


def final_spread(method: str, bank: SliceBank, seed: int, steps: int, batch: int, rate: float, **own) -> float:
    """Mean feature spread over the last five of some steps of SGD."""
    torch.manual_seed(seed)
    plugin, unet = find("methods", method), find("backbones", "unet")
    settings = plugin.Settings(hidden=64, projection=32, views=VIEWS, **own)
    task = plugin.build(settings, unet.build(unet.Settings(width=4), 1, 0)).train()
    optimiser = make_optimiser(TrainingSettings(optimiser="sgd", learning_rate=rate), task)
    spreads = []
    for given in Batches(bank, batch, 32, seed).between(0, steps):
        step = task.step(given)
        step.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        spreads.append(float(step.parts["feature_spread"]))
    return sum(spreads[-5:]) / 5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("method", "safeguard", "steps", "batch", "rate"),
    [("byol", "predictor", 30, 12, 0.05), ("simsiam", "stop_gradient", 60, 36, 0.1)],
)
def test_without_its_safeguard_it_collapses(bank, method, safeguard, steps, batch, rate, seed):
    intact, bare = (final_spread(method, bank, seed, steps, batch, rate, **{safeguard: on}) for on in (True, False))
    assert bare < 0.5 * intact
