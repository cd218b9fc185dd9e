"""Runs in the formats of other programs, through the command line, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fakes.command import macl
from fakes.nnunet import plans as toy_plans
from fakes.nnunet import write_plans
from fakes.toy_store import write_toy_store
from macl.data.store import Store
from macl.inference.members import load_member
from macl.inference.sliding_window import predict_volume
from macl.models.conversion import onnx_graph
from macl.models.conversion.foreign import read_foreign
from macl.models.conversion.nnunet import nnunet_names
from macl.plugins import find
from macl.preprocessing.normalisation import normalise
from macl.records.runs import read_record
from macl.stages.finetune import finetune
from macl.stages.pretrain import pretrain
from macl.stages.split import split
from macl.utils import checkpoint
from macl.utils.errors import MaclError

FEATURES = [4, 6, 6]
PLANNED = "backbone_settings.plans={}"
SHORT = ["training.steps=2", "training.checkpoint_every_steps=100"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a split, plans, and runs of nnU-Net's network and of the U-Net."""
    folder = tmp_path_factory.mktemp("export")
    store = write_toy_store(folder / "toy.store", patients=6, slices=16, side=32)
    split(store.path, folder / "toy.json", test="1", budgets="2")
    for name, residual in (("plain", False), ("residual", True)):
        plan = write_plans(folder / name / "nnUNetPlans.json", FEATURES, residual=residual)
        pretrain(
            store.path,
            folder / name / "run",
            method="macl",
            split=str(folder / "toy.json"),
            overrides=[
                "dims=3",
                "backbone=nnunet",
                PLANNED.format(plan),
                "method_settings.decoder_blocks=1",
                "training.size=[16,32,32]",
                "training.batch_size=4",
                *SHORT,
            ],
            device="cpu",
        )
    pretrain(
        store.path,
        folder / "unet",
        method="macl",
        overrides=[
            "backbone_settings.width=4",
            "training.size=32",
            "training.batch_size=4",
            *SHORT,
        ],
        device="cpu",
    )
    finetune(
        store.path,
        folder / "segmenter",
        init=str(folder / "plain" / "run"),
        split=str(folder / "toy.json"),
        labels="2",
        overrides=["training.size=[16,32,32]", "training.batch_size=2", *SHORT],
        device="cpu",
    )
    return folder


def exported(run: Path, out: Path, *words: object) -> Any:
    """The exported file's content, as a program reads it that trusts it."""
    answer = macl("export", run, "--out", out, *words)
    assert answer.code == 0, answer.err
    return torch.load(out, weights_only=True)


def trained(run: Path) -> dict[str, Tensor]:
    return dict(checkpoint.read(run / "weights.safetensors").tensors)


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_every_name_of_nnunet_is_there_and_trained_where_it_can_be(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    run, plan = folder / kind / "run", folder / kind / "nnUNetPlans.json"
    words = ("--to", "nnunet", "--plans", plan, "--configuration", "3d_fullres")
    state = exported(run, tmp_path / "pre.pth", *words)["network_weights"]
    own = trained(run)
    assert {name.split(".")[0] for name in own} == {"encoder", "decoder"}
    for name, tensor in own.items():
        for theirs in nnunet_names(name, 2):
            assert torch.equal(state[theirs], tensor), theirs
    last = "decoder.stages.1.convs.0"
    assert {f"{last}.conv.weight", f"{last}.all_modules.1.bias", "decoder.transpconvs.1.bias"} <= {
        *state
    }
    assert not any("seg_layers" in name for name in state)
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    assert state[f"{last}.conv.weight"].std() > 0


def test_fresh_tensors_are_drawn_from_the_runs_seed(folder: Path, tmp_path: Path) -> None:
    run = folder / "plain" / "run"
    first, second = (
        exported(run, tmp_path / name, "--to", "nnunet")["network_weights"]
        for name in ("a.pth", "b.pth")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_segmenter_takes_its_heads_along(folder: Path, tmp_path: Path) -> None:
    state = exported(folder / "segmenter", tmp_path / "s.pth", "--to", "nnunet")["network_weights"]
    own = trained(folder / "segmenter")
    assert torch.equal(state["decoder.seg_layers.1.weight"], own["head.weight"])
    assert torch.equal(state["decoder.seg_layers.0.weight"], own["deep_heads.0.weight"])


def planned_for(folder: Path, change: dict[str, Any], **architecture: Any) -> Path:
    """Other plans in a new folder."""
    folder.mkdir(exist_ok=True)
    changed = toy_plans(FEATURES)
    volumes = changed["configurations"]["3d_lowres"]
    volumes |= change
    volumes["architecture"]["arch_kwargs"] |= architecture
    path = folder / "nnUNetPlans.json"
    path.write_text(json.dumps(changed))
    return path


def test_a_plan_of_more_channels_shares_the_weights_among_them(
    folder: Path, tmp_path: Path
) -> None:
    schemes = {"normalization_schemes": ["ZScoreNormalization"] * 2}
    plan = planned_for(tmp_path / "two", schemes)
    run = folder / "plain" / "run"
    words = ("--to", "nnunet", "--plans", plan)
    state = exported(run, tmp_path / "two.pth", *words)["network_weights"]
    first = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.allclose(state[first].sum(1, keepdim=True), trained(run)[first], atol=1e-6)


def test_another_network_than_the_planned_one_is_refused(folder: Path, tmp_path: Path) -> None:
    run = folder / "plain" / "run"
    wider = planned_for(tmp_path / "wider", {}, features_per_stage=[4, 8, 8])
    other = planned_for(tmp_path / "strides", {}, strides=[[1, 1, 1], [2, 2, 2], [1, 2, 2]])
    for plan, words in ((wider, "features"), (other, "strides")):
        answer = macl("export", run, "--to", "nnunet", "--plans", plan, "--out", tmp_path / "x.pth")
        assert answer.code == 1
        assert "is not the one that" in answer.err
        assert words in answer.err
    answer = macl("export", folder / "unet", "--to", "nnunet", "--out", tmp_path / "x.pth")
    assert answer.code == 1
    assert "--set backbone=nnunet" in answer.err
    assert not list(tmp_path.glob("x*"))


def test_the_way_back_through_a_checkpoint_of_nnunet(folder: Path, tmp_path: Path) -> None:
    """A checkpoint as nnU-Net writes it, of a network whose every tensor is known."""
    source = exported(folder / "segmenter", tmp_path / "e.pth", "--to", "nnunet")
    plans = toy_plans(FEATURES)
    content = {
        "network_weights": source["network_weights"],
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)]},
        "_best_ema": np.float64(0.5),
        "init_args": {
            "plans": plans, "configuration": "3d_fullres", "fold": 0,
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }  # fmt: skip
    torch.save(content, tmp_path / "checkpoint_final.pth")
    out = tmp_path / "run"
    answer = macl(
        "finetune", folder / "toy.store", "--init", tmp_path / "checkpoint_final.pth",
        "--split", folder / "toy.json", "--labels", "2", "--out", out, "--device", "cpu",
        "--set", "training.size=[16,32,32]", "--set", "training.batch_size=2",
        "--set", "training.steps=1", "--set", "training.learning_rate=1e-12",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    transfer = json.loads((out / "transfer.json").read_text())
    assert transfer["counts"] == {"loaded": len(trained(folder / "segmenter"))}
    assert transfer["unused"] == []
    for name, tensor in trained(out).items():
        assert torch.allclose(tensor, trained(folder / "segmenter")[name], atol=1e-6), name


def test_torch_files_hold_what_was_trained_and_say_what_it_is(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "unet.safetensors"
    answer = macl("export", folder / "unet", "--to", "torch", "--out", out)
    assert answer.code == 0, answer.err
    plain, own = load_file(out), trained(folder / "unet")
    assert plain.keys() == own.keys()
    assert all(torch.equal(plain[name], own[name]) for name in own)
    described = json.loads((tmp_path / "unet.json").read_text())
    assert (described["backbone"], described["dims"], described["patch"]) == ("unet", 2, [64, 64])
    assert described["tensors"]["encoder.levels.0.0.weight"] == [4, 1, 3, 3]
    assert described["prepared"]["normalisation"] == "zscore"


def test_the_release_gets_all_its_names_and_gives_them_back(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "released.pth"
    state = exported(folder / "unet", out, "--to", "macl-release")
    own = trained(folder / "unet")
    assert torch.equal(state["share_encoder.contr_1_1.0.weight"], own["encoder.levels.0.0.weight"])
    assert torch.equal(state["online_decoder.upscale5.weight"], own["decoder.blocks.0.up.weight"])
    assert "online_decoder.expand_1_2.1.running_var" in state
    back = read_foreign(out, 2).tensors
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)
    answer = macl("export", folder / "plain" / "run", "--to", "macl-release", "--out", out)
    assert answer.code == 1
    assert "exists already" in answer.err
    out = tmp_path / "other.pth"
    answer = macl("export", folder / "plain" / "run", "--to", "macl-release", "--out", out)
    assert answer.code == 1
    assert "choose --to torch" in answer.err
    assert not out.exists()


def test_the_card_counts_patients_and_names_none(folder: Path, tmp_path: Path) -> None:
    exported(folder / "plain" / "run", tmp_path / "pre.pth", "--to", "nnunet")
    card = (tmp_path / "pre.pth.card.md").read_text()
    assert "Scans without labels: 5; patients: 5." in card
    assert "Test scans set aside: 1, never trained on." in card
    assert "patient0" not in card
    assert str(folder) not in card
    for heading in ("## Data", "## Training", "## Scores", "## Intended use", "## Licence"):
        assert heading in card
    assert "2309.11876" in card
    assert "fresh, drawn at random" in card


def test_mistakes_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    for words, message in (
        ([folder / "nowhere", "--to", "torch", "--out", tmp_path / "x"], "does not exist"),
        (
            [folder / "unet", "--to", "torch", "--out", tmp_path / "x.json"],
            "give it another ending",
        ),
        (
            [folder / "unet", "--to", "torch", "--out", tmp_path / "x", "--plans", tmp_path],
            "for --to nnunet alone",
        ),
        (
            [folder / "plain" / "run", "--to", "nnunet", "--out", tmp_path / "x",
             "--configuration", "2d"],
            "add --plans",
        ),
    ):  # fmt: skip
        answer = macl("export", *words)
        assert (answer.code, answer.err.count("\n")) == (1, 1), answer.err
        assert message in answer.err
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- nnssl


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_checkpoint_of_nnssl_says_where_the_encoder_stands(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    """All that nnU-Net's `like_nnssl` and `PretrainedTrainer` read of one."""
    out = tmp_path / "pre.pth"
    content = exported(folder / kind / "run", out, "--to", "nnssl")
    state, plan = content["network_weights"], content["nnssl_adaptation_plan"]
    own = trained(folder / kind / "run")
    stated = toy_plans(FEATURES, residual=kind == "residual")["configurations"]["3d_lowres"]
    network = plan["architecture_plans"]
    assert network["arch_class_name"] == stated["architecture"]["network_class_name"]
    assert network["arch_kwargs_requiring_import"] == stated["architecture"]["_kw_requires_import"]
    kwargs = stated["architecture"]["arch_kwargs"]
    slope = {"inplace": True, "negative_slope": 0.01}
    assert network["arch_kwargs"] == {**kwargs, "nonlin_kwargs": slope}
    configuration = next(iter(plan["pretrain_plan"]["configurations"].values()))
    assert configuration == {"spacing": [5.0, 1.0, 1.0], "patch_size": [16, 32, 32]}
    assert plan["recommended_downstream_patchsize"] == [16, 32, 32]
    assert (plan["pretrain_num_input_channels"], plan["key_to_lpe"]) == (1, None)
    encoder = {name for name in state if name.startswith(plan["key_to_encoder"] + ".")}
    stem = {name for name in state if name.startswith(plan["key_to_stem"] + ".")}
    assert {name for name in own if name.startswith("encoder.")} <= encoder | stem
    for name in plan["keys_to_in_proj"]:
        assert name.startswith(plan["key_to_stem"])
        assert torch.equal(state[f"{name}.weight"], state[f"{plan['keys_to_in_proj'][0]}.weight"])
        assert state[f"{name}.weight"].shape[1] == 1
    assert [{*citation} for citation in content["citations"]] == [{"type", "name", "apa_citations"}]
    del content["macl"]  # as a checkpoint of nnssl's own
    torch.save(content, out)
    back = read_foreign(out, 2)
    assert all(torch.equal(back.tensors[name], own[name]) for name in own)
    architecture = back.about["backbone_settings"]["architecture"]
    assert architecture["features"] == FEATURES
    assert architecture["residual"] == (kind == "residual")


def test_what_nnssl_does_not_have(folder: Path, tmp_path: Path) -> None:
    answer = macl("export", folder / "unet", "--to", "nnssl", "--out", tmp_path / "x.pth")
    assert (answer.code, answer.err.count("\n")) == (1, 1), answer.err
    assert "--set backbone=nnunet" in answer.err
    content = {
        "network_weights": {"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(4, 1, 3, 3, 3)},
        "nnssl_adaptation_plan": {"architecture_plans": {"arch_class_name": "PrimusM"}},
    }
    torch.save(content, tmp_path / "primus.pth")
    with pytest.raises(MaclError, match=r"plans a PrimusM .* only PlainConvUNet"):
        read_foreign(tmp_path / "primus.pth", 2)
    content["nnssl_adaptation_plan"]["architecture_plans"] = {"arch_class_name": "ResEncL"}
    torch.save(content, tmp_path / "resenc.pth")
    about = read_foreign(tmp_path / "resenc.pth", 2).about
    assert about["backbone_settings"]["architecture"]["features"] == [32, 64, 128, 256, 320, 320]


# ---------------------------------------------------------------- ONNX


class InRuntime(nn.Module):
    """A graph in onnxruntime, in place of a network."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'macl[onnx]'")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.anything = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        (logits,) = self.session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)


@pytest.mark.parametrize("dims", [2, 3])
def test_masks_of_an_onnx_graph_are_those_of_the_segmenter(
    folder: Path, tmp_path: Path, dims: int
) -> None:
    pytest.importorskip("onnxscript", reason="needs pip install 'macl[onnx]'")
    run, out = folder / "segmenter", tmp_path / "segmenter.onnx"
    if dims == 2:
        run = tmp_path / "slices"
        finetune(
            folder / "toy.store", run, init="scratch", split=str(folder / "toy.json"), labels="2",
            overrides=["backbone_settings.width=4", "training.size=32", *SHORT], device="cpu",
        )  # fmt: skip
    answer = macl("export", run, "--to", "onnx", "--out", out)
    assert answer.code == 0, answer.err
    assert answer.err.count("\n") == 1
    graph, record = InRuntime(out).eval(), read_record(run)
    described = json.loads(graph.session.get_modelmeta().custom_metadata_map["macl"])
    assert described["patch"] == list(record.patch)
    assert described["prepared"] == record.prepared.model_dump(mode="json")
    assert described["classes"] == ["background", "ring", "disc"]
    assert "## Intended use" in (tmp_path / "segmenter.onnx.card.md").read_text()
    member = load_member(run, record, find("models", record.settings["backbone"]), "cpu")
    store = Store.open(folder / "toy.store")
    for name in ("patient001", "patient002"):
        image = torch.from_numpy(normalise(store.read(name), store.case(name).normalisation))
        ours, theirs = (
            predict_volume(network, image, patch=record.patch, batch_size=3).argmax(0)
            for network in (member.network, graph)
        )
        assert (ours == theirs).float().mean() >= 0.9999


def test_what_has_no_classes_has_no_graph(folder: Path, tmp_path: Path) -> None:
    answer = macl("export", folder / "unet", "--to", "onnx", "--out", tmp_path / "x.onnx")
    assert (answer.code, answer.err.count("\n")) == (1, 1), answer.err
    assert "pre-training run" in answer.err
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "find_spec", lambda name: None)
    answer = macl("export", folder / "segmenter", "--to", "onnx", "--out", tmp_path / "x.onnx")
    assert (answer.code, answer.err.count("\n")) == (1, 1), answer.err
    assert "pip install 'macl[onnx]'" in answer.err
    assert not list(tmp_path.iterdir())
