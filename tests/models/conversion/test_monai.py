"""MONAI's DynUNet under our names: the same maps as in MONAI, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from macl.models.conversion.foreign import read_foreign
from macl.models.nnunet import NnUNet, Settings
from macl.models.transfer import transplant
from macl.tasks.segmentation import Segmenter
from macl.utils.errors import MaclError


def dyn_unet(dims: int, kernel: int | list[int] = 3, **options: Any) -> torch.nn.Module:
    from monai.networks.nets.dynunet import DynUNet

    strides = [1, 2, [1, 2, 2][-dims:], 2]
    torch.manual_seed(dims)
    network = DynUNet(
        dims,
        2,
        3,
        [3, 3, kernel, 3],
        strides,
        strides[1:],
        filters=[4, 6, 8, 8],
        **options,
    )
    for parameter in network.parameters():  # norms start at 1 and 0, whatever their place
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("options", [{}, {"deep_supervision": True, "deep_supr_num": 2}])
def test_a_dynunet_gives_the_same_maps_here(
    dims: int, options: dict[str, Any], tmp_path: Path
) -> None:
    theirs = dyn_unet(dims, **options)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "model.pt")
    source = read_foreign(tmp_path / "model.pt", 2)
    settings = Settings.model_validate(source.about["backbone_settings"])
    assert settings.architecture is not None
    assert settings.architecture.deep_supervision == bool(options)
    network = NnUNet(settings, 2, dims=dims)
    own = Segmenter(network, 3, settings.architecture.deep_supervision).eval()
    transfer = transplant("model.pt", source.tensors, own.named_state())
    assert {row.outcome for row in transfer.tensors} == {"loaded"}
    assert transfer.unused == ()
    images = torch.randn(2, 2, *(16, 32, 32)[-dims:])
    with torch.no_grad():
        assert torch.allclose(own(images), theirs(images), atol=1e-4)
        if options:
            theirs.train()
            _, middle, coarse = theirs(images).unbind(1)
            for ours, enlarged in zip(
                own.logits_by_scale(images)[1:], (middle, coarse), strict=True
            ):
                steps = [
                    large // small for large, small in zip(enlarged.shape, ours.shape, strict=True)
                ]
                corners = enlarged[(..., *(slice(None, None, step) for step in steps[2:]))]
                assert torch.allclose(ours, corners, atol=1e-4)


def test_networks_that_are_not_built_here_are_refused(tmp_path: Path) -> None:
    from monai.networks.nets.basic_unet import BasicUNet

    for network, named in (
        (dyn_unet(2, res_block=True), "residual blocks"),
        (dyn_unet(2, norm_name="batch"), "BatchNorm"),
        (dyn_unet(2, [1, 3]), "kernels differ from stage to stage"),
        (BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 8, 4)), "BasicUNet"),
    ):
        torch.save(network.state_dict(), tmp_path / "model.pt")
        with pytest.raises(MaclError, match=named):
            read_foreign(tmp_path / "model.pt", 2)
    torch.save({"input_block.conv1.conv.weight": torch.zeros(4, 1, 3, 3)}, tmp_path / "model.pt")
    with pytest.raises(MaclError, match="no whole DynUNet"):
        read_foreign(tmp_path / "model.pt", 2)
