"""store → weights of an encoder and decoder blocks, from slices without labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lightning_fabric import Fabric

from macl.config import PretrainSettings, read_recipe, resolve
from macl.data import resolved_split as parts
from macl.data import splits
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache, kept_slices
from macl.data.store import Store
from macl.distributed.launch import describe_device, on_rank_zero, process_group
from macl.distributed.collectives import require_even_shards
from macl.engine.trainer import fit, make_fabric
from macl.models.network import Network
from macl.plugins import find
from macl.records import runs
from macl.records.runs import RunRecord
from macl.tasks.pretraining import (
    CollapseWatch,
    Method,
    build_method,
    describe_weights,
    resolve_pretraining,
    transferable_tensors,
)
from macl.utils import checkpoint
from macl.utils.files import require_disk_space
from macl.utils.progress import say

DEFAULT_METHOD = "macl"


@process_group()
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
    settings, plugin, network = _settings(method, recipe, overrides)
    fabric = make_fabric(device, settings.training.precision)
    chosen = splits.read_split(split) if split else None
    resolved = parts.resolve(chosen, opened, allow_overlap=allow_overlap) if chosen else None
    everyone = tuple(case.name for case in opened.index.cases)
    cases = resolved.pretraining_cases if resolved and not allow_overlap else everyone
    record = RunRecord(
        kind="pretrain", settings=settings.model_dump(mode="json"), recipe=recipe or settings.method, seed=seed, device=describe_device(fabric),
        versions=runs.versions(), **runs.about_store(opened, store), cases=cases,
        split=chosen.model_dump(mode="json") if chosen else None, overlap_allowed=allow_overlap,
        people=resolved.people(cases) if resolved else runs.patients_of(opened, cases),
        patients=runs.patients_of(opened, cases), test_cases=resolved.test_cases if resolved else (),
    )  # fmt: skip
    slices = sum(map(len, kept_slices(opened, cases, settings.minimum_content).values()))
    training = settings.training
    require_even_shards(training.batch_size, slices, fabric.world_size, training.gather_negatives)
    record = on_rank_zero(lambda: runs.open_run(out, record, resume))
    if record.finished:
        say(f"{out} is finished already.")
        return record
    return _train(opened, out, record, settings, plugin, network, fabric)


def _settings(
    method: str | None, recipe: str | None, overrides: Iterable[str]
) -> tuple[PretrainSettings, type[Method], type[Network]]:
    name = method or DEFAULT_METHOD
    find("methods", name)
    values = read_recipe("pretrain", recipe or name)
    settings = resolve(PretrainSettings, {**values, "method": method} if method else values, overrides)
    plugin, network = find("methods", settings.method), find("models", settings.backbone)
    return resolve_pretraining(settings, plugin, network), plugin, network


def _train(
    store: Store, out: Path, record: RunRecord, settings: PretrainSettings, plugin: type[Method], network: type[Network],
    fabric: Fabric,
) -> RunRecord:  # fmt: skip
    training = settings.training
    bank = PatchCache(
        store, record.cases, labelled=False, device=fabric.device, minimum_content=settings.minimum_content
    )
    whole = sum(store.case(name).slices for name in record.cases)
    if whole > len(bank):
        say(
            f"Passed over: {whole - len(bank)} of {whole} slices, whose content is less than {settings.minimum_content:g}."
        )
    batches = Loader(
        bank, training.batch_size, settings.patch, record.seed, fabric.global_rank, fabric.world_size, plugin.needs_neighbours,
        training.gather_negatives,
    )  # fmt: skip
    if max(case.slices for case in bank.cases) == 1:
        say(
            "Every case has a single slice, so that positions tell nothing: to a method that draws slices of similar height "
            "together (macl, pcl, gcl) all are alike; --method masked, for one, needs no positions."
        )
    task = build_method(settings, plugin, network, len(record.channels), record.seed)
    count = sum(parameter.numel() for parameter in task.parameters())
    require_disk_space(out, 4 * count * 4, "The run")
    steps = training.epochs * batches.steps_per_epoch
    say(f"{settings.method}: {count / 1e6:.3f} M parameters, {steps} steps on {describe_device(fabric)}.")
    watch = CollapseWatch(task, batches.contrasted, steps)
    tensors, seconds = fit(task, batches, training, out, fabric, watch)
    record = record.model_copy(update={"finished": True, "steps": steps, "seconds": round(seconds, 3)})
    if fabric.is_global_zero:
        checkpoint.write(out / runs.WEIGHTS, transferable_tensors(task, tensors), describe_weights(settings, task, record.channels))
        runs.write_record(out, record)
        (out / runs.STATE).unlink(missing_ok=True)
    say(f"Pre-trained weights are in {out / runs.WEIGHTS}.")
    return record
