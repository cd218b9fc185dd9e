"""nnU-Net's network: what is read from a plan, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.networks import planned
from fakes.nnunet import plans, write_plans
from macl.config.mistakes import validate
from macl.models.nnunet import NnUNet, ResidualBlock, Settings
from macl.utils.errors import MaclError


def complete(path: Path, dims: int = 3, **settings: Any) -> Settings:
    return NnUNet.complete(Settings(plans=path, **settings), (32,) * dims, None)


@pytest.mark.parametrize(
    ("dims", "configuration", "name"),
    [(2, None, "2d"), (3, None, "3d_fullres"), (3, "3d_lowres", "3d_lowres")],
)
def test_a_configuration_of_the_plan(
    tmp_path: Path, dims: int, configuration: str | None, name: str
) -> None:
    path = write_plans(tmp_path / "nnUNetPlans.json", [8, 16, 20, 20])
    settings = complete(path, dims, configuration=configuration)
    plan = settings.architecture
    assert plan is not None
    assert (settings.plans, settings.configuration) == (None, name)
    assert plan.features == (8, 16, 20, 20)
    assert plan.kernels == ((3,) * dims,) * 4
    first = (2, 2) if dims == 2 else (1, 2, 2)
    assert plan.strides == ((1,) * dims, first, (2,) * dims, (2,) * dims)
    assert (plan.convolutions, plan.decoder_convolutions) == ((2, 2, 2, 2), (2, 2, 2))
    assert (plan.bias, plan.norm_eps, plan.norm_affine) == (True, 1e-5, True)
    assert (plan.negative_slope, plan.deep_supervision, plan.residual) == (0.01, True, False)
    network = NnUNet(settings, 2, dims=dims)
    assert (network.channels, network.strides) == (plan.features, plan.strides)


def test_a_run_keeps_the_architecture_and_needs_the_plan_no_more(tmp_path: Path) -> None:
    path = write_plans(tmp_path / "nnUNetPlans.json", [4, 6, 6], residual=True)
    settings = complete(path)
    path.unlink()
    kept = validate(Settings, json.loads(settings.model_dump_json()))
    assert kept == settings
    assert NnUNet.complete(kept, (32, 32, 32), None) == settings
    assert NnUNet.deep_supervision(kept)


def test_weights_start_as_nnunets_do() -> None:
    settings = validate(Settings, {"architecture": planned(3, residual=True)})
    network = NnUNet(settings, 1, dims=3)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 1 + 3 + 4
    assert all(not block.conv2.norm.weight.any() for block in blocks)  # pyright: ignore
    assert all((block.conv1.norm.weight == 1).all() for block in blocks)  # pyright: ignore
    wide = planned(2) | {"features": [64, 64, 64]}
    torch.manual_seed(0)
    plain = NnUNet(validate(Settings, {"architecture": wide}), 1, dims=2)
    weight = plain.encoder.stages[1][0].convs[0].conv.weight  # pyright: ignore
    assert weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (64 * 9)) ** 0.5, rel=0.03)


def change(path: Path, change: Any, *, configuration: str = "3d_lowres") -> Path:
    """A plan with its architecture changed in place."""
    stated = plans([4, 6, 6])
    change(stated["configurations"][configuration])
    path.write_text(json.dumps(stated))
    return path


def kwargs(**changes: Any) -> Any:
    return lambda configuration: configuration["architecture"]["arch_kwargs"].update(changes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda one: one.pop("architecture"), "no architecture.*before 2.4"),
        (
            lambda one: one["architecture"].update(network_class_name="a.b.Primus"),
            "plans a Primus.*PlainConvUNet and ResidualEncoderUNet",
        ),
        (kwargs(norm_op="torch.nn.BatchNorm3d"), "norm_op is BatchNorm3d, not InstanceNorm3d"),
        (kwargs(nonlin="torch.nn.ReLU"), "nonlin is ReLU, not LeakyReLU"),
        (kwargs(dropout_op="torch.nn.Dropout3d"), "with dropout_op 'torch.nn.Dropout3d'"),
        (kwargs(nonlin_first=True), "with nonlin_first True"),
        (kwargs(features_per_stage=[4, 6]), r"\[4, 6\] is not one number for each of 3 stages"),
        (kwargs(strides=[2, 2, 2]), r"first stage has the stride \[2, 2, 2\]"),
        (kwargs(conv_op=None), "None"),
    ],
)
def test_what_is_not_built_here_is_refused(tmp_path: Path, changed: Any, message: str) -> None:
    path = change(tmp_path / "nnUNetPlans.json", changed)
    with pytest.raises(MaclError, match=f"nnUNetPlans.json.*{message}"):
        complete(path)


def test_numbers_may_stand_for_all_stages(tmp_path: Path) -> None:
    short = kwargs(kernel_sizes=3, n_conv_per_stage=1, n_conv_per_stage_decoder=2)
    plan = complete(change(tmp_path / "nnUNetPlans.json", short)).architecture
    assert plan is not None
    assert plan.kernels == ((3, 3, 3),) * 3
    assert (plan.convolutions, plan.decoder_convolutions) == ((1, 1, 1), (2, 2))


def test_other_mistakes_are_one_sentence(tmp_path: Path) -> None:
    path = write_plans(tmp_path / "nnUNetPlans.json", [4, 6, 6])
    with pytest.raises(MaclError, match=r"add --set backbone_settings\.plans="):
        NnUNet.complete(Settings(), (32, 32), None)
    with pytest.raises(MaclError, match=r"There is no .*missing\.json.* nnU-Net plan"):
        complete(tmp_path / "missing.json")
    with pytest.raises(MaclError, match="no configuration '3d'; it has 2d, 3d_cascade_fullres"):
        complete(path, configuration="3d")
    with pytest.raises(MaclError, match="takes another network's masks as input"):
        complete(path, configuration="3d_cascade_fullres")
    with pytest.raises(MaclError, match="configuration 3d_fullres is 3D, but dims is 2"):
        complete(path, dims=2, configuration="3d_fullres")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(MaclError, match="it is no nnU-Net plan"):
        complete(tmp_path / "other.json")
