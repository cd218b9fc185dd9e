"""Whole views, and views of a part of a patch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fakes.views import geometry, images, rng
from macl.augmentation.geometry import spatial_view
from macl.augmentation.intensity import change_intensity
from macl.augmentation.views import small_view
from macl.config.settings import AugmentationSettings, IntensitySettings, SpatialSettings
from macl.data.rng import SampleRng

CHANGES = tuple(IntensitySettings.model_fields)


@pytest.mark.parametrize("kind", ["spatial", "intensity"])
@pytest.mark.parametrize("patch", [(32, 32), (12, 16, 20)])
def test_a_view_depends_on_seed_step_and_sample_alone(kind: str, patch: tuple[int, ...]) -> None:
    image = images(6, *patch)
    intensity = IntensitySettings(**dict.fromkeys(CHANGES, 1.0))

    def view(numbers: list[int], seed: int = 3, step: int = 9) -> Tensor:
        drawn = SampleRng(seed, step, torch.tensor(numbers))
        if kind == "spatial":
            return spatial_view(image[numbers], drawn, "v", SpatialSettings(deform=1.0))
        return change_intensity(image[numbers], drawn, intensity)

    whole = view([0, 1, 2, 3, 4, 5])
    torch.testing.assert_close(view([4, 1, 3]), whole[[4, 1, 3]], rtol=0, atol=1e-5)
    torch.testing.assert_close(view([2]), whole[[2]], rtol=0, atol=1e-5)
    assert torch.equal(view([0, 1, 2, 3, 4, 5]), whole)
    for other in (view([0, 1], seed=4), view([0, 1], step=10)):
        assert ((other - whole[:2]).abs().flatten(1).mean(1) > 0.01).all()


def test_a_small_view_of_a_volume_is_a_window_at_its_own_resolution() -> None:
    """Every axis has its own multiple; a window onto ramps shows their slope and lies inside."""
    patch = (16, 64, 48)
    ramps = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in patch), indexing="ij"))
    still = AugmentationSettings(spatial=geometry(deform=0.0))
    window = small_view(ramps.expand(4, -1, -1, -1, -1), rng(4), still, 0.5, (4, 16, 16))
    assert window.shape == (4, 3, 8, 32, 16)
    for axis in range(3):
        slope = window[:, axis].diff(dim=axis + 1)
        torch.testing.assert_close(slope, torch.ones_like(slope), atol=1e-3, rtol=0)
        first = window[:, axis, 0, 0, 0]
        assert (first >= -0.01).all()
        assert (first <= patch[axis] - window.shape[axis + 2] + 0.01).all()
        assert len(first.unique()) == 4
