"""nnU-Net's names of our tensors: every key of its state, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fakes.nnunet import architecture
from macl.models._nnunet_plans import architecture_of
from macl.models.conversion.nnunet import from_nnunet_names, nnunet_names
from macl.models.nnunet import NnUNet, Settings
from macl.tasks.segmentation import Segmenter


def segmenter(features: list[int], *, residual: bool, classes: int = 3) -> Segmenter:
    """Without memory."""
    block = {"architecture": architecture(3, features, residual=residual)}
    plan = architecture_of({"configurations": {"3d_fullres": block}}, "3d_fullres", Path("plan"))
    with torch.device("meta"):
        return Segmenter(NnUNet(Settings(architecture=plan), 1, dims=3), classes, True)


@pytest.mark.parametrize(("residual", "tensors", "keys"), [(False, 108, 292), (True, 264, 956)])
def test_every_key_of_a_network_of_six_stages(residual: bool, tensors: int, keys: int) -> None:
    """The counts are those of nnU-Net's own states."""
    own = segmenter([32, 64, 128, 256, 320, 320], residual=residual).named_state()
    theirs = [name for each in own for name in nnunet_names(each, 5)]
    assert (len(own), len(theirs), len({*theirs})) == (tensors, keys, keys)
    first = "encoder.stem.convs.0" if residual else "encoder.stages.0.0.convs.0"
    assert nnunet_names(f"{first}.conv.weight", 5) == (
        f"{first}.conv.weight",
        f"{first}.all_modules.0.weight",
        f"decoder.encoder.{first.removeprefix('encoder.')}.conv.weight",
        f"decoder.encoder.{first.removeprefix('encoder.')}.all_modules.0.weight",
    )
    assert {
        "decoder.stages.4.convs.0.norm.bias",
        "decoder.stages.4.convs.0.all_modules.1.bias",
        "decoder.transpconvs.0.weight",
        "decoder.seg_layers.0.bias",
        "decoder.seg_layers.4.weight",
    } <= {*theirs}
    if residual:
        assert {
            "encoder.stages.1.blocks.0.skip.1.conv.weight",
            "decoder.encoder.stages.4.blocks.0.skip.1.all_modules.1.weight",
            "encoder.stages.5.blocks.5.conv2.all_modules.1.bias",
        } <= {*theirs}


@pytest.mark.parametrize("residual", [False, True])
def test_the_way_back_leaves_each_tensor_once(residual: bool) -> None:
    own = segmenter([4, 6, 6], residual=residual).named_state()
    theirs = {name: own[each] for each in own for name in nnunet_names(each, 2)}
    back = from_nnunet_names(theirs)
    assert back.keys() == own.keys()
    assert all(back[name] is own[name] for name in own)
