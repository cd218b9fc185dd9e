"""run → one file that other programs read, and a model card beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from macl.config.mistakes import validate
from macl.config.settings import PluginSettings
from macl.models._nnunet_plans import read_architecture, read_channels
from macl.models.conversion import onnx_graph, pickled
from macl.models.conversion.macl_release import to_authors_names
from macl.models.conversion.nnssl import nnssl_entries
from macl.models.conversion.nnunet import to_checkpoint
from macl.models.nnunet import CONFIGURATIONS
from macl.models.nnunet import Settings as NnunetSettings
from macl.models.transfer import Transfer, transplant
from macl.pages.model_card import model_card
from macl.plugins import find
from macl.records.runs import SCORES, RunRecord, read_record, read_weights, require_finished
from macl.records.scores import convention_of, read_test_rows, summarise
from macl.tasks.networks import plugin_settings
from macl.tasks.run_settings import NETWORK_SETTINGS, describe_network
from macl.tasks.segmentation import build_segmenter, load_segmenter, segmenter_settings
from macl.utils import checkpoint
from macl.utils.checkpoint import Checkpoint
from macl.utils.errors import MaclError, listed
from macl.utils.files import AnyPath, write_json, write_text
from macl.utils.progress import say

CPU = torch.device("cpu")
Format = Literal["nnunet", "nnssl", "torch", "onnx", "macl-release"]


def export(
    run: AnyPath,
    out: AnyPath,
    *,
    to: Format,
    plans: AnyPath | None = None,
    configuration: str | None = None,
) -> tuple[Path, ...]:
    """Write the weights of a run in the format of another program, with a model card.

    nnunet: a file for nnU-Net's `-pretrained_weights`. nnssl: a checkpoint of nnssl's with its
    adaptation plan, for nnU-Net's `nnUNetv2_train_pretrained`. torch: safetensors, described in a
    JSON file beside it. onnx: a segmenter's graph, described in its metadata. macl-release: the
    layout of the program that MACL's authors released.

    Args:
        run: a finished run.
        out: the file; the card has its name with `.card.md` behind it.
        to: the format.
        plans: nnunet: the `nnUNetPlans.json` of the training to come; None: as the run's network
            was planned.
        configuration: nnunet: of the plans; None: that of the run.

    Returns:
        The files that were written.

    Raises:
        MaclError: the run is not finished, its network does not exist in that format or differs
            from the planned one, packages are missing, or a file to write is there already.
    """
    if to != "nnunet" and (plans is not None or configuration is not None):
        raise MaclError(f"--plans and --configuration are for --to nnunet alone, not for {to}.")
    run, out, plans = Path(run), Path(out), None if plans is None else Path(plans)
    record = read_record(run)
    require_finished(run, record)
    card, described = out.with_name(f"{out.name}.card.md"), out.with_suffix(".json")
    files = (out, card, described) if to == "torch" else (out, card)
    if len({*files}) < len(files):
        raise MaclError(f"--out {out} is where its description goes: give it another ending.")
    if there := [str(path) for path in files if path.exists()]:
        raise MaclError(f"{listed(there)} exists already: delete it, or choose another --out.")
    saved = read_weights(run, record)
    if to == "nnunet":
        transfer = _write_nnunet(run, record, saved, out, plans, configuration)
    elif to == "nnssl":
        transfer = _write_nnssl(run, record, saved, out)
    elif to == "macl-release":
        transfer = _write_released(run, record, saved, out)
    elif to == "onnx":
        transfer = None
        _write_onnx(run, record, _description(record, _about(record, saved)), out)
    else:
        transfer = None
        about = _about(record, saved)
        checkpoint.write(out, saved.tensors, about)
        tensors = {name: list(tensor.shape) for name, tensor in saved.tensors.items()}
        write_json(described, {**_description(record, about), "tensors": tensors})
    write_text(card, model_card(record, _FORMATS[to], transfer, _scores(run, record)))
    if transfer:
        say(transfer.table())
    say(f"Exported to {out}; {card} says what it is.")
    return files


_FORMATS: dict[Format, str] = {
    "nnunet": "checkpoint for nnU-Net's `-pretrained_weights`",
    "nnssl": "checkpoint of nnssl's, for nnU-Net's `nnUNetv2_train_pretrained`",
    "torch": "safetensors, with a description as JSON beside it",
    "onnx": "ONNX graph: normalised images (B, C, *patch) to logits (B, K, *patch)",
    "macl-release": "state of the network that MACL's authors released, as PyTorch saves it",
}


def _about(record: RunRecord, saved: Checkpoint) -> dict[str, Any]:
    """What a weights file says of itself, as that of a run does."""
    about = {
        "kind": record.kind,
        "channels": list(record.channels),
        "classes": list(record.classes),
        **{name: record.settings[name] for name in NETWORK_SETTINGS},
    }
    blocks = saved.about.get("decoder_blocks")
    return about if blocks is None else {**about, "decoder_blocks": blocks}


def _scores(run: Path, record: RunRecord) -> Mapping[str, Any] | None:
    """The means of the scores of cases that the run was not trained on; None: there are none."""
    if not (run / SCORES).is_file():
        return None
    rows, _ = read_test_rows(run, record)
    return summarise(rows, convention_of(rows))


# ---------------------------------------------------------------- complete networks


def _complete(
    run: Path,
    record: RunRecord,
    saved: Checkpoint,
    network_settings: PluginSettings | Mapping[str, Any],
    channels: int,
) -> tuple[dict[str, Tensor], Transfer]:
    """All tensors of a run's network and heads: the trained ones and, where there are none, fresh
    ones drawn from its seed.

    Raises:
        MaclError: a trained tensor does not fit.
    """
    plugin = find("models", record.settings["backbone"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(record.seed)
        if record.is_segmenter:
            settings = segmenter_settings(record).model_copy(
                update={"backbone_settings": network_settings}
            )
            segmenter = build_segmenter(settings, plugin, channels, len(record.classes))
            state = segmenter.named_state()
        else:
            chosen = plugin_settings(plugin, network_settings, "backbone_settings")
            state = dict(plugin(chosen, channels, dims=record.settings["dims"]).state_dict())
    transfer = transplant(str(run), saved.tensors, state)
    refused = [f"{row.name}: {row.why}" for row in transfer.tensors if row.outcome == "refused"]
    if refused or transfer.unused:
        reasons = listed((*refused, *transfer.unused))
        raise MaclError(f"The weights of {run} do not fit its network ({reasons}): train again.")
    return state, transfer


def _write_nnunet(
    run: Path,
    record: RunRecord,
    saved: Checkpoint,
    out: Path,
    plans: Path | None,
    configuration: str | None,
) -> Transfer:
    settings = _planned_network(run, record)
    channels = len(record.channels)
    if plans is not None:
        name = configuration or settings.configuration or CONFIGURATIONS[record.settings["dims"]]
        _require_same(run, settings, plans, name)
        planned = read_channels(plans, name) or channels
        if planned != channels and 1 not in (planned, channels):
            raise MaclError(
                f"{plans} plans for {planned} image channels, but {run} was trained on {channels}: "
                "train on the same channels."
            )
        channels = planned
    elif configuration is not None:
        raise MaclError("--configuration names one of a plan's: add --plans nnUNetPlans.json.")
    content, transfer = _checkpoint(run, record, saved, settings, channels)
    pickled.write(out, content)
    return transfer


def _write_nnssl(run: Path, record: RunRecord, saved: Checkpoint, out: Path) -> Transfer:
    settings = _planned_network(run, record)
    if record.settings["dims"] != 3:
        raise MaclError(f"{run} trained slices, and nnssl has volumes alone: choose --to nnunet.")
    assert settings.architecture is not None
    channels = len(record.channels)
    content, transfer = _checkpoint(run, record, saved, settings, channels)
    entries = nnssl_entries(settings.architecture, channels, record.patch, _spacing_mm(record))
    pickled.write(out, {**content, **entries})
    return transfer


def _planned_network(run: Path, record: RunRecord) -> NnunetSettings:
    """The settings of nnU-Net's network; MaclError if the run trained another."""
    if record.settings["backbone"] != "nnunet":
        raise MaclError(
            f"{run} trained the network {record.settings['backbone']}, and nnU-Net takes that of "
            "its plan alone: train with --set backbone=nnunet --set backbone_settings.plans=…."
        )
    return validate(NnunetSettings, record.settings["backbone_settings"])


def _checkpoint(
    run: Path, record: RunRecord, saved: Checkpoint, settings: NnunetSettings, channels: int
) -> tuple[dict[str, Any], Transfer]:
    assert settings.architecture is not None
    state, transfer = _complete(run, record, saved, settings, channels)
    stages = len(settings.architecture.features) - 1
    return to_checkpoint(state, stages, _about(record, saved)), transfer


def _spacing_mm(record: RunRecord) -> Sequence[float] | None:
    """The spacing that all scans were resampled to along three axes, or had; None: they differ."""
    prepared, trained = record.prepared, record.trained_on
    wanted = prepared.plan.spacing_mm if prepared.plan else prepared.spacing_mm
    if isinstance(wanted, tuple) and len(wanted) == 3:
        return wanted
    return trained.finest_mm if trained and trained.finest_mm == trained.coarsest_mm else None


def _require_same(run: Path, settings: NnunetSettings, plans: Path, configuration: str) -> None:
    """MaclError unless the plan's network is the one that was trained."""
    planned = read_architecture(plans, configuration).model_dump(exclude={"deep_supervision"})
    assert settings.architecture is not None
    trained = settings.architecture.model_dump()
    different = [
        f"{name.replace('_', ' ')} {trained[name]}, planned {planned[name]}"
        for name in planned
        if trained[name] != planned[name]
    ]
    if different:
        raise MaclError(
            f"The network of {run} is not the one that {plans} states for {configuration} "
            f"({listed(different)}): pre-train with these plans, or name those that it was trained "
            "with."
        )


def _write_released(run: Path, record: RunRecord, saved: Checkpoint, out: Path) -> Transfer:
    settings = record.settings
    state, transfer = _complete(
        run, record, saved, settings["backbone_settings"], len(record.channels)
    )
    renamed = to_authors_names(state)
    parts = [name for name in state if name.startswith(("encoder.", "decoder."))]
    if (settings["backbone"], settings["dims"]) != ("unet", 2) or len(renamed) != len(parts):
        raise MaclError(
            f"{run} trained a {describe_network(settings)}, and the release has but the 2D unet "
            "with four poolings: choose --to torch."
        )
    pickled.write(out, renamed)
    return transfer


def _write_onnx(run: Path, record: RunRecord, about: Mapping[str, Any], out: Path) -> None:
    segmenter = load_segmenter(run, find("models", record.settings["backbone"]), CPU)
    onnx_graph.write(out, segmenter, (len(record.channels), *record.patch), about)


def _description(record: RunRecord, about: Mapping[str, Any]) -> dict[str, Any]:
    """What a program needs to know to use the weights, as JSON."""
    return {
        "format": "macl-export",
        "version": 1,
        **about,
        "modality": record.modality,
        "prepared": record.prepared.model_dump(mode="json"),
        "patch": list(record.patch),
        "label_values": list(record.label_values),
    }
