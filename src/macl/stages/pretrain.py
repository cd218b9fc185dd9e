"""store → weights of an encoder and decoder blocks, from slices without labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

from lightning_fabric import Fabric
from torch import nn

from macl import checkpoint
from macl.config import PretrainSettings, read_recipe, resolve
from macl.data import parts, runs, splits
from macl.data.bank import SliceBank, kept_slices
from macl.data.batches import Batches
from macl.data.runs import RunRecord
from macl.data.store import Store
from macl.files import require_disk_space
from macl.plugins import Backbone, Method, find
from macl.pretraining import CollapseWatch, about_weights, build_task, handed_on, settle
from macl.processes import by_the_first, together, where
from macl.progress import say
from macl.ranks import require_even_shares
from macl.training import fit, make_fabric

DEFAULT_METHOD = "macl"


@together()
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
    settings, plugin, backbone = _settings(method, recipe, overrides)
    fabric = make_fabric(device, settings.training.precision)
    chosen = splits.read_split(split) if split else None
    resolved = parts.resolve(chosen, opened, allow_overlap=allow_overlap) if chosen else None
    everyone = tuple(case.name for case in opened.index.cases)
    cases = resolved.pretraining_cases if resolved and not allow_overlap else everyone
    record = RunRecord(
        kind="pretrain", settings=settings.model_dump(mode="json"), recipe=recipe or settings.method, seed=seed, device=where(fabric),
        versions=runs.versions(), **runs.about_store(opened, store), cases=cases,
        split=chosen.model_dump(mode="json") if chosen else None, overlap_allowed=allow_overlap,
        people=resolved.people(cases) if resolved else runs.patients_of(opened, cases),
        patients=runs.patients_of(opened, cases), test_cases=resolved.test_cases if resolved else (),
    )  # fmt: skip
    slices = sum(map(len, kept_slices(opened, cases, settings.minimum_content).values()))
    training = settings.training
    require_even_shares(training.batch_size, slices, fabric.world_size, training.gather_negatives)
    record = by_the_first(lambda: runs.open_run(out, record, resume))
    if record.finished:
        say(f"{out} is finished already.")
        return record
    return _train(opened, out, record, settings, plugin, backbone, fabric)


def _settings(
    method: str | None, recipe: str | None, overrides: Iterable[str]
) -> tuple[PretrainSettings, Method, Backbone]:
    values = read_recipe("pretrain", recipe or find("methods", method or DEFAULT_METHOD).name)
    settings = resolve(PretrainSettings, {**values, "method": method} if method else values, overrides)
    plugin, backbone = find("methods", settings.method), find("backbones", settings.backbone)
    return settle(settings, plugin, backbone), plugin, backbone


def _train(
    store: Store, out: Path, record: RunRecord, settings: PretrainSettings, plugin: Method, backbone: Backbone,
    fabric: Fabric,
) -> RunRecord:  # fmt: skip
    training = settings.training
    bank = SliceBank(
        store, record.cases, labelled=False, device=fabric.device, minimum_content=settings.minimum_content
    )
    whole = sum(store.case(name).slices for name in record.cases)
    if whole > len(bank):
        say(
            f"Passed over: {whole - len(bank)} of {whole} slices, whose content is less than {settings.minimum_content:g}."
        )
    batches = Batches(
        bank, training.batch_size, training.size, record.seed, fabric.global_rank, fabric.world_size, plugin.neighbours,
        training.gather_negatives,
    )  # fmt: skip
    if max(case.slices for case in bank.cases) == 1:
        say(
            "Every case has a single slice, so that positions tell nothing: to a method that draws slices of similar height "
            "together (macl, pcl, gcl) all are alike; --method masked, for one, needs no positions."
        )
    task = build_task(settings, plugin, backbone, len(record.channels), record.seed)
    count = sum(parameter.numel() for parameter in cast(nn.Module, task).parameters())
    require_disk_space(out, 4 * count * 4, "The run")
    steps = training.epochs * batches.steps_per_epoch
    say(f"{plugin.name}: {count / 1e6:.3f} M parameters, {steps} steps on {where(fabric)}.")
    watch = CollapseWatch(task, batches.contrasted, steps)
    tensors, seconds = fit(task, batches, training, out, fabric, watch)
    record = record.model_copy(update={"finished": True, "steps": steps, "seconds": round(seconds, 3)})
    if fabric.is_global_zero:
        checkpoint.write(out / runs.WEIGHTS, handed_on(task, tensors), about_weights(settings, plugin, record.channels))
        runs.write_record(out, record)
        (out / runs.STATE).unlink(missing_ok=True)
    say(f"Pre-trained weights are in {out / runs.WEIGHTS}.")
    return record
