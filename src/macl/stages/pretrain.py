"""store → weights of an encoder and decoder blocks, from slices without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import nn

from macl import checkpoint
from macl.config import PluginSettings, PretrainSettings, read_recipe, resolve, validate
from macl.data import runs, splits
from macl.data.batches import Batches, SliceBank
from macl.data.runs import RunRecord
from macl.data.store import Store
from macl.files import require_disk_space
from macl.plugins import Method, MethodModule, find
from macl.progress import say
from macl.training import fit, make_fabric

DEFAULT_METHOD = "macl"
NEAR_UNIFORM = 0.98
"""Share of the uniform solution's loss from which on a run is said to stand near it."""


def pretrain(
    store: Path,
    out: Path,
    *,
    method: str | None = None,
    split: str | None = None,
    recipe: str | None = None,
    overrides: Iterable[str] = (),
    device: str = "auto",
    seed: int = 0,
    resume: bool = False,
    allow_overlap: bool = False,
) -> RunRecord:
    """Pre-train on the slices of a store, but not on those of the split's test people.

    Args:
        store: folder made by `prepare`.
        out: the run's folder.
        method: way to pre-train; None: as the recipe says, or MACL.
        split: split file or name; None: every case is used.
        recipe: recipe by name or path; None: the method's own.
        overrides: `key=value` settings over the recipe's.
        device: "auto", "cpu", "cuda" or "mps".
        seed: of the weights, the order and the views.
        resume: go on with an unfinished run.
        allow_overlap: let test people's scans in; recorded.

    Raises:
        MaclError: a setting, the store, the split or the folder does not fit; the sentence says what to do.
    """
    opened = Store.open(store)
    settings, plugin, method_settings = _settings(method, recipe, overrides)
    fabric = make_fabric(device, settings.training.precision)
    chosen = splits.read_split(split) if split else None
    resolved = splits.resolve(chosen, opened, allow_overlap=allow_overlap) if chosen else None
    everyone = tuple(case.name for case in opened.index.cases)
    cases = resolved.pretraining_cases if resolved and not allow_overlap else everyone
    record = RunRecord(
        kind="pretrain", settings=settings.model_dump(mode="json"), recipe=recipe or settings.method, seed=seed, device=str(fabric.device),
        versions=runs.versions(), **runs.about_store(opened, store), cases=cases,
        split=chosen.model_dump(mode="json") if chosen else None, overlap_allowed=allow_overlap,
        people=resolved.people(cases) if resolved else runs.patients_of(opened, cases),
        patients=runs.patients_of(opened, cases), test_cases=resolved.test_cases if resolved else (),
    )  # fmt: skip
    record = runs.open_run(out, record, resume)
    if record.finished:
        say(f"{out} is finished already.")
        return record
    return _train(opened, out, record, settings, plugin, method_settings, fabric)


def _settings(
    method: str | None, recipe: str | None, overrides: Iterable[str]
) -> tuple[PretrainSettings, Method, PluginSettings]:
    """Settings with the method's own resolved, and slice sides that its network can take."""
    values = read_recipe("pretrain", recipe or find("methods", method or DEFAULT_METHOD).name)
    settings = resolve(PretrainSettings, {**values, "method": method} if method else values, overrides)
    plugin = find("methods", settings.method)
    own = validate(plugin.Settings, settings.method_settings, where="method_settings")
    backbone = validate(
        find("backbones", settings.backbone).Settings, settings.backbone_settings, where="backbone_settings"
    )
    multiple = plugin.side_multiple(own)
    size = math.ceil(settings.training.size / multiple) * multiple
    if size != settings.training.size:
        say(f"Slices of {settings.training.size}² are padded to {size}²: {plugin.name} takes multiples of {multiple}.")
    training = settings.training.model_copy(update={"size": size})
    changed = {
        "method_settings": own.model_dump(mode="json"), "backbone_settings": backbone.model_dump(mode="json"),
        "training": training,
    }  # fmt: skip
    return settings.model_copy(update=changed), plugin, own


def _train(
    store: Store, out: Path, record: RunRecord, settings: PretrainSettings, plugin: Method, own: PluginSettings,
    fabric: Fabric,
) -> RunRecord:  # fmt: skip
    bank = SliceBank(store, record.cases, labelled=False, device=fabric.device)
    batches = Batches(
        bank, settings.training.batch_size, settings.training.size, record.seed, neighbours=plugin.neighbours
    )
    if max(case.slices for case in bank.cases) == 1:
        say("Every case has a single slice, so that slice positions tell nothing: all slices will be positives.")
    backbone_plugin = find("backbones", settings.backbone)
    backbone_settings = validate(backbone_plugin.Settings, settings.backbone_settings, where="backbone_settings")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(record.seed)
        blocks = plugin.decoder_blocks(own)
        backbone = backbone_plugin.build(backbone_settings, len(record.channels), blocks)
        task = plugin.build(own, backbone)
    count = sum(parameter.numel() for parameter in cast(nn.Module, task).parameters())
    require_disk_space(out, 4 * count * 4, "The run")
    steps = settings.training.epochs * batches.steps_per_epoch
    say(f"{plugin.name}: {count / 1e6:.3f} M parameters, {steps} steps on {fabric.device}.")
    watch = _CollapseWatch(task, batches.batch_size, steps)
    tensors, seconds = fit(task, batches, settings.training, out, fabric, watch)
    handed_on = {
        name.removeprefix("backbone."): tensor
        for name, tensor in tensors.items()
        if name.startswith(tuple(f"backbone.{prefix}" for prefix in task.handed_on()))
    }
    about = {
        "kind": "pretrain", "method": plugin.name, "decoder_blocks": blocks, "backbone": settings.backbone,
        "backbone_settings": backbone_settings.model_dump(mode="json"), "channels": list(record.channels),
    }  # fmt: skip
    checkpoint.write(out / runs.WEIGHTS, handed_on, about)
    record = record.model_copy(update={"finished": True, "steps": steps, "seconds": round(seconds, 3)})
    runs.write_record(out, record)
    (out / runs.STATE).unlink(missing_ok=True)
    say(f"Pre-trained weights are in {out / runs.WEIGHTS}.")
    return record


class _CollapseWatch:
    """Warns once where a run stands near the solution in which all features are equal."""

    def __init__(self, task: MethodModule, batch_size: int, steps: int) -> None:
        self.uniform = task.uniform_loss(batch_size)
        self.from_step = max(100, steps // 10)
        self.warned = False

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        if self.warned or self.uniform is None or step < self.from_step:
            return
        name, uniform = self.uniform
        if values[name] > NEAR_UNIFORM * uniform:
            self.warned = True
            say(
                f"Warning: at step {step} {name} is {values[name]:.3f}, near {uniform:.3f}, where all features are equal "
                f"(feature spread {values.get('feature_spread', float('nan')):.3f}): nothing is being learned yet; "
                "if it stays so, change training.learning_rate."
            )
