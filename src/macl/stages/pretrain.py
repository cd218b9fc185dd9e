"""store → weights of an encoder and decoder blocks, learned without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from macl.config.settings import PretrainSettings
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.sampling import Sampler
from macl.data.store import Store
from macl.data.windows import Volumes, select_volumes
from macl.distributed.launch import process_group
from macl.engine.run import TrainingKeywords, TrainingRun, inherited, split_of
from macl.plugins import find
from macl.records.runs import WEIGHTS, RunRecord, read_log
from macl.tasks.networks import require_values_to_normalise
from macl.tasks.pretraining import (
    CollapseWatch,
    Method,
    build_method,
    collapse_verdict,
    describe_weights,
    pretraining_sampler,
    require_enough_patches,
    transferable_tensors,
)
from macl.tasks.run_settings import pretrain_settings
from macl.utils.files import AnyPath
from macl.utils.progress import say, warn

DEFAULT_METHOD = "macl"


@process_group()
def pretrain(
    store: AnyPath | None,
    out: AnyPath,
    *,
    method: str | None = None,
    split: AnyPath | None = None,
    **options: Unpack[TrainingKeywords],
) -> RunRecord:
    """Pre-train a network on the scans of a store, without those of the split's test people.

    Args:
        store: folder made by `prepare`; None: that of the run to resume.
        out: the run's folder.
        method: how to pre-train; None: as the recipe says, or MACL.
        split: split file or name; None: all cases are used.
        options: `recipe` (None: the method's own), `overrides`, `device`, `seed`, `resume`,
            `inherit` and `allow_overlap`; see `TrainingOptions`.

    Raises:
        MaclError: a setting, the store, the split or the folder does not fit.
    """
    out, store = Path(out), None if store is None else Path(store)
    resumed, store, chosen = inherited(out, "pretrain", store, options)
    recipe = chosen.recipe or method or DEFAULT_METHOD
    opened = Store.open(store, chosen.verify)
    settings, plugin = pretrain_settings(
        recipe,
        chosen.overrides,
        method=method,
        store=opened,
        resumed=resumed.settings if resumed else None,
    )
    chosen_split = str(split) if split else (split_of(resumed) if resumed else None)
    with TrainingRun(opened, out, settings, chosen_split, chosen) as run:
        cases = tuple(case.name for case in opened.index.cases)
        if run.resolved and not chosen.allow_overlap:
            cases = run.resolved.pretraining_cases
        volumes = select_volumes(opened, cases, settings.minimum_content)
        sampler = pretraining_sampler(settings, volumes, chosen.seed)
        network = find("models", settings.backbone)
        task = build_method(settings, plugin, network, len(opened.index.channels), chosen.seed)
        patches = volumes.samples_per_epoch(settings.patch)
        require_enough_patches(settings, plugin, patches, run.fabric.world_size)
        batch_size = min(settings.training.batch_size, patches)
        require_values_to_normalise(batch_size, settings.patch, task.network.strides)
        if run.open(task, cases, patches, recipe=chosen.recipe or settings.method).finished:
            return run.record
        _report_left_out_slices(opened, cases, volumes, settings)
        return _train(run, settings, task, sampler)


def _train(
    run: TrainingRun, settings: PretrainSettings, task: Method, sampler: Sampler
) -> RunRecord:
    training, fabric = settings.training, run.fabric
    cache = PatchCache(
        run.store,
        run.record.cases,
        labelled=False,
        device=fabric.device,
        minimum_content=settings.minimum_content,
    )
    loader = Loader(
        cache,
        sampler,
        fabric.global_rank,
        fabric.world_size,
        neighbours=task.needs_neighbours,
        gather_negatives=training.gather_negatives,
    )
    if task.contrasts_positions:
        _warn_of_one_position(loader)
    uniform_losses = task.uniform_losses(loader.contrasted)
    watch = CollapseWatch(
        settings.method, uniform_losses, training.total_steps(loader.steps_per_epoch)
    )
    trained = run.train(settings.method, task, loader, on_log=watch)
    weights = transferable_tensors(task, trained.tensors)
    record = run.finish(
        weights,
        describe_weights(settings, task, run.record.channels),
        trained,
        uniform_losses=uniform_losses,
        at_uniform=collapse_verdict(
            settings.method, read_log(run.folder), uniform_losses, trained.steps
        ),
    )
    say(f"Pre-trained weights are in {run.folder / WEIGHTS}.")
    return record


def _report_left_out_slices(
    store: Store, cases: tuple[str, ...], volumes: Volumes, settings: PretrainSettings
) -> None:
    total = sum(store.case(name).slices for name in cases)
    left_out = total - len(volumes.slice_numbers)
    if left_out and settings.dims == 2:
        say(
            f"Left out {left_out} of {total} slices, of which less than "
            f"{settings.minimum_content:g} is not air."
        )


def _warn_of_one_position(loader: Loader) -> None:
    """Say so if all patches lie at one position, which makes every pair of them positives."""
    if len(loader.patch) == 2 and int(loader.cache.volumes.extents[:, 0].max()) == 1:
        warn(
            "Every case has a single slice, so that positions tell nothing: to methods that "
            "contrast positions (macl, pcl, gcl), all slices are alike. --method masked, for one, "
            "needs no positions."
        )
    elif loader.all_patches_cover_their_volume:
        warn(
            "A patch covers every volume, so that all patches lie at one position and there is "
            "nothing to contrast: choose smaller sides with --set training.size=…, or a method "
            "without positions, such as --method masked."
        )
