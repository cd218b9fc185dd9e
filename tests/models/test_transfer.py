"""Transfer: what became of every tensor, and the table that says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fakes.networks import unet
from macl.models.network import Network
from macl.models.transfer import Transfer, require_transfer, transplant
from macl.tasks.segmentation import Segmenter
from macl.utils.errors import MaclError


def backbone(
    channels: int = 1, blocks: int | None = None, width: int = 4, seed: int = 0, dims: int = 2
) -> Network:
    torch.manual_seed(seed)
    network = unet(width, channels, blocks, dims)
    for name, tensor in network.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    return network


def segmenter(channels: int = 1, width: int = 4, classes: int = 3, dims: int = 2) -> Segmenter:
    return Segmenter(backbone(channels, width=width, seed=1, dims=dims), classes)


def into(target: Segmenter, source: dict[str, Tensor], init: str = "run (abc)") -> Transfer:
    return transplant(init, source, target.named_state())


def test_every_tensor_of_the_segmenter_is_accounted_for() -> None:
    source, target = backbone(blocks=2), segmenter()
    before = {name: tensor.clone() for name, tensor in target.named_state().items()}
    transfer = into(target, source.state_dict())
    assert [row.name for row in transfer.tensors] == list(before)
    for row in transfer.tensors:
        now = target.named_state()[row.name]
        assert row.shape == tuple(now.shape)
        if row.name.startswith(("encoder.", "decoder.blocks.0.", "decoder.blocks.1.")):
            assert (row.outcome, row.source) == ("loaded", row.name)
            assert torch.equal(now, source.state_dict()[row.name])
        else:
            assert (row.outcome, row.source) == ("fresh", None)
            assert torch.equal(now, before[row.name])
    assert transfer.unused == ()


def test_what_transfer_json_says() -> None:
    source = {**backbone(channels=4, blocks=1).state_dict(), "projector.weight": torch.ones(3)}
    source["encoder.centre.0.weight"] = torch.ones(5, 5, 3, 3)
    about = into(segmenter(), source).about()
    rows = {row["name"]: row for row in about["tensors"]}
    assert rows["encoder.levels.0.0.weight"] == {
        "name": "encoder.levels.0.0.weight", "shape": [4, 1, 3, 3], "outcome": "adapted",
        "from": "encoder.levels.0.0.weight", "why": "4 → 1 input channels",
    }  # fmt: skip
    assert rows["encoder.centre.0.weight"]["outcome"] == "refused"
    assert (
        rows["encoder.centre.0.weight"]["why"] == "shape [5, 5, 3, 3] does not fit [64, 32, 3, 3]"
    )
    assert rows["head.weight"] == {
        "name": "head.weight", "shape": [3, 4, 1, 1], "outcome": "fresh", "from": None,
        "why": "not in the source",
    }  # fmt: skip
    assert about["source"] == "run (abc)"
    assert about["unused"] == ["projector.weight"]
    assert sum(about["counts"].values()) == len(rows)
    assert about["counts"]["adapted"] == about["counts"]["refused"] == 1
    assert about["elements"]["refused"] == 64 * 32 * 9
    assert sum(about["elements"].values()) == sum(
        tensor.numel() for tensor in segmenter().named_state().values()
    )


def test_the_table_names_parts_and_outcomes() -> None:
    table = into(
        segmenter(), {**backbone(blocks=2).state_dict(), "projector.weight": torch.ones(3)}
    ).table()
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["Weights", "from", "run", "(abc):"]
    outcomes = {line[0]: line[1] for line in lines[1:] if line[0] != "not"}
    assert (
        outcomes["encoder.levels.0"]
        == outcomes["encoder.centre"]
        == outcomes["decoder.blocks.1"]
        == "loaded"
    )
    assert outcomes["decoder.blocks.2"] == outcomes["head.weight"] == "fresh"
    assert "projector.weight" in table


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (1, 3), (2, 1)])
def test_repeating_the_scan_gives_the_same_maps(before: int, after: int, dims: int) -> None:
    source = backbone(before, dims=dims).double().eval()
    target = segmenter(after, dims=dims).double().eval()
    transfer = into(target, source.state_dict())
    outcomes = {row.outcome for row in transfer.tensors if row.name.startswith("encoder")}
    assert outcomes == {"loaded", "adapted"}
    scan = torch.randn(2, 1, *(32,) * dims, dtype=torch.float64)
    expected = source.encode(scan.expand(-1, before, *(-1,) * dims))
    actual = target.network.encode(scan.expand(-1, after, *(-1,) * dims))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
def test_weights_of_slices_do_not_fit_volumes(before: int, after: int) -> None:
    target = segmenter(dims=after)
    transfer = into(target, backbone(dims=before).state_dict())
    convolutions = [row for row in transfer.tensors if row.name.endswith(("0.weight", "3.weight"))]
    assert {row.outcome for row in convolutions if len(row.shape) == after + 2} == {"refused"}


@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 2)])
def test_other_channels_are_refused_and_stay_fresh(before: int, after: int) -> None:
    target = segmenter(after)
    fresh = target.network.encoder.levels[0][0].weight.clone()
    transfer = into(target, backbone(before).state_dict())
    (refused,) = [row for row in transfer.tensors if row.outcome == "refused"]
    assert refused.name == "encoder.levels.0.0.weight"
    assert torch.equal(target.network.encoder.levels[0][0].weight, fresh)


def test_another_width_is_refused_with_the_setting_to_change() -> None:
    transfer = into(segmenter(width=4), backbone(width=8).state_dict())
    assert not any(row.outcome == "adapted" for row in transfer.tensors)
    expected = r"Nothing of run \(abc\) fits.*does not fit.*with unet, width 8: .*backbone_settings"
    with pytest.raises(MaclError, match=expected):
        require_transfer(transfer, encoder_only=True, trained_with="unet, width 8")


def test_another_networks_names_are_refused() -> None:
    transfer = into(segmenter(), {"layer1.weight": torch.ones(4, 1, 3, 3)})
    with pytest.raises(MaclError, match="no name fits"):
        require_transfer(transfer, encoder_only=False)


def test_an_encoder_alone_must_be_asked_for() -> None:
    transfer = into(segmenter(), backbone(blocks=0).state_dict())
    with pytest.raises(MaclError, match=r"No decoder tensor.*--encoder-only"):
        require_transfer(transfer, encoder_only=False)
    require_transfer(transfer, encoder_only=True)
    require_transfer(into(segmenter(), backbone(blocks=1).state_dict()), encoder_only=False)


def test_nothing_is_tied_to_the_source() -> None:
    source, target = backbone(), segmenter()
    into(target, source.state_dict())
    with torch.no_grad():
        source.encoder.levels[0][0].weight.fill_(7)
    assert not (target.network.encoder.levels[0][0].weight == 7).any()
    assert target.network.encoder.levels[0][0].weight.requires_grad
