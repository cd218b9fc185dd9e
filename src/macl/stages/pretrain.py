"""store → weights of an encoder and decoder blocks, learned without labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Unpack

from macl.config import PretrainSettings, resolve_recipe
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.sampling import GroupedSampler
from macl.data.store import Store
from macl.data.windows import Volumes, select_volumes
from macl.distributed.launch import process_group
from macl.engine.run import TrainingKeywords, TrainingOptions, TrainingRun
from macl.models.network import Network
from macl.plugins import find
from macl.records.runs import WEIGHTS, RunRecord
from macl.tasks.networks import median_spacing_mm, plugin_settings, resolve_patch
from macl.tasks.pretraining import (
    CollapseWatch,
    Method,
    build_method,
    describe_weights,
    resolve_pretraining,
    transferable_tensors,
)
from macl.utils.progress import say

DEFAULT_METHOD = "macl"
LARGEST_SHARE_OF_A_VOLUME = 0.6
"""Largest side that training.size = "auto" chooses for methods that contrast positions, as a share
of the median volume: patches as large as the volume would all lie at one position."""


@process_group()
def pretrain(
    store: Path,
    out: Path,
    *,
    method: str | None = None,
    split: str | None = None,
    **options: Unpack[TrainingKeywords],
) -> RunRecord:
    """Pre-train a network on the scans of a store, without those of the split's test people.

    Args:
        store: folder made by `prepare`.
        out: the run's folder.
        method: how to pre-train; None: as the recipe says, or MACL.
        split: split file or name; None: all cases are used.
        options: `recipe` (None: the method's own), `overrides`, `device`, `seed`, `resume` and
            `allow_overlap`; see `TrainingOptions`.

    Raises:
        MaclError: a setting, the store, the split or the folder does not fit.
    """
    chosen = TrainingOptions(**options)
    recipe = chosen.recipe or method or DEFAULT_METHOD
    opened = Store.open(store)
    settings, plugin = resolve_settings(recipe, method, chosen, opened)
    run = TrainingRun(opened, out, settings, split, chosen)
    cases = tuple(case.name for case in opened.index.cases)
    if run.resolved and not chosen.allow_overlap:
        cases = run.resolved.pretraining_cases
    volumes = select_volumes(opened, cases, settings.minimum_content)
    patients = settings.patients_per_position if plugin.contrasts_positions else 1
    if patients > 1:
        _check_groups(settings, volumes)
    network = find("models", settings.backbone)
    task = build_method(settings, plugin, network, len(opened.index.channels), chosen.seed)
    patches = volumes.samples_per_epoch(settings.patch)
    if run.open(task, cases, patches, recipe=chosen.recipe or settings.method).finished:
        return run.record
    _report_left_out_slices(opened, cases, volumes, settings)
    loader = Loader(
        PatchCache(
            opened,
            cases,
            labelled=False,
            device=run.fabric.device,
            minimum_content=settings.minimum_content,
        ),
        settings.training.batch_size,
        settings.patch,
        chosen.seed,
        run.fabric.global_rank,
        run.fabric.world_size,
        plugin.needs_neighbours,
        settings.training.gather_negatives,
        patients_per_position=patients,
        position_jitter=settings.position_jitter,
    )
    if plugin.contrasts_positions:
        _warn_of_one_position(loader, volumes)
    steps = settings.training.epochs * loader.steps_per_epoch
    watch = CollapseWatch(task, loader.contrasted, steps)
    trained = run.train(settings.method, task, loader, on_log=watch)
    weights = transferable_tensors(task, trained.tensors)
    record = run.finish(weights, describe_weights(settings, task, run.record.channels), trained)
    say(f"Pre-trained weights are in {out / WEIGHTS}.")
    return record


def resolve_settings(
    recipe: str, method: str | None, options: TrainingOptions, store: Store | None
) -> tuple[PretrainSettings, type[Method]]:
    """Complete settings of a pre-training run, and its method.

    Args:
        recipe: name or path.
        method: its name, over the recipe's; None: the recipe's.
        options: whose overrides apply.
        store: what to train on, for sizes and spacing; None: unknown.

    Raises:
        MaclError: a setting does not fit.
    """
    if method:
        find("methods", method)
    settings = resolve_recipe(PretrainSettings, recipe, options.overrides, method=method)
    plugin: type[Method] = find("methods", settings.method)
    network: type[Network] = find("models", settings.backbone)
    own = plugin_settings(plugin, settings.method_settings, "method_settings")
    settings = resolve_patch(
        settings,
        network,
        store,
        partial(plugin.patch_multiple, own),
        LARGEST_SHARE_OF_A_VOLUME if plugin.contrasts_positions else 1.0,
    )
    spacing_mm = median_spacing_mm(store, settings.dims) if store else None
    return resolve_pretraining(settings, plugin, network, spacing_mm), plugin


def _check_groups(settings: PretrainSettings, volumes: Volumes) -> None:
    """MaclError if a batch cannot be made of whole groups, before the run's folder is made."""
    GroupedSampler(
        volumes,
        settings.patch,
        settings.training.batch_size,
        seed=0,
        patients_per_position=settings.patients_per_position,
        jitter=settings.position_jitter,
    )


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


def _warn_of_one_position(loader: Loader, volumes: Volumes) -> None:
    """Say so if all patches lie at one position, which makes every pair of them positives."""
    if len(loader.patch) == 2 and int(volumes.extents[:, 0].max()) == 1:
        say(
            "Every case has a single slice, so that positions tell nothing: to methods that "
            "contrast positions (macl, pcl, gcl), all slices are alike. --method masked, for one, "
            "needs no positions."
        )
    elif loader.all_patches_cover_their_volume:
        say(
            "A patch covers every volume, so that all patches lie at one position and there is "
            "nothing to contrast: choose smaller sides with --set training.size=…, or a method "
            "without positions, such as --method masked."
        )
