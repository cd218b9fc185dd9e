"""Scans → what is chosen without a clock: slices or volumes, who tests, spacing and patches."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from macl.preprocessing.resampling import Spacing
from macl.stages.split import amount
from macl.workflows.run.facts import SourceFacts, median_of_axes
from macl.workflows.run.speed import NetworkDesign

CUBIC = 2.0
"""Voxels are nearly cubic if their longest side is at most so many times the shortest."""

FEWEST_SLICES = 16
"""Volumes with fewer slices are trained on as slices."""

MOST_FOLDS = 5
FEW_LABELS = 20
"""Cross-validation tests everybody where fewer people than this have labels."""

SEEN_AT_ONCE = {2: 1.5, 3: 2.0}
"""Scans are resampled more coarsely where they are longer than so many patches."""

RESAMPLED_FROM = 1.1
"""A spacing is left as it is where it would change by less than this factor."""

POSITIONS_SHARE = 0.6
"""Largest side of a patch for pre-training in 3D, as a share of the scan: patches as large as the
scan would all lie at one position."""

POSITIONS_RECIPE, SINGLE_SLICES_RECIPE = "macl-plus", "masked"
"""Of pre-training: by positions in the scan, and for scans that are a single slice."""

PATIENTS_PER_POSITION = 4
"""Of the recipe for volumes."""


class SplitChoice(NamedTuple):
    """Who tests: `folds` and `test` as in a plan."""

    folds: int
    test: str

    def testing(self, people: int) -> int:
        """How many of these labelled people test one model; of a cross-validation, the fewest."""
        return people // self.folds if self.folds else amount(self.test, people, "--test")

    def tested_share(self, people: int) -> float:
        """The share of these labelled people whom some model tests."""
        return 1.0 if self.folds else self.testing(people) / people


def choose_dims(facts: SourceFacts, has_gpu: bool) -> tuple[Literal[2, 3], str]:
    """Slices or volumes, and why."""
    spacing_mm, slices = facts.median_spacing_mm, facts.median_size[0]
    if slices < FEWEST_SLICES:
        return 2, f"slices (2D), since a scan has only {slices}"
    if spacing_mm is None:
        return 2, "slices (2D), since not every scan says how large its voxels are"
    ratio = max(spacing_mm) / min(spacing_mm)
    if ratio > CUBIC:
        return 2, f"slices (2D), since voxels are {ratio:.1f} times as long as wide"
    if not has_gpu:
        return 2, "slices (2D), since volumes (3D) want a GPU; voxels are nearly cubic"
    return 3, "volumes (3D), since voxels are nearly cubic and there is a GPU"


def choose_split(facts: SourceFacts) -> tuple[SplitChoice, str]:
    """Who tests, and why."""
    labelled, unlabelled = len(facts.labelled_people), len(facts.unlabelled_people)
    if not labelled:
        return SplitChoice(0, "0"), "none; nobody has labels, so it ends with pre-trained weights"
    if labelled == 1:
        return SplitChoice(0, "0"), "no test and no scores, since only one person has labels"
    if labelled < FEW_LABELS and unlabelled >= labelled:
        folds = min(labelled, MOST_FOLDS)
        return SplitChoice(folds, "0"), (
            f"cross-validation with {folds} models, which tests each of {labelled} labelled people "
            f"once; pre-training sees only the {unlabelled} people without labels"
        )
    tests = amount("20%", labelled, "--test")
    few = "; that is too few for a good estimate" if labelled < FEW_LABELS else ""
    return SplitChoice(
        0, "20%"
    ), f"{tests} of {labelled} labelled people test, the others train{few}"


def choose_spacing(facts: SourceFacts, dims: Literal[2, 3], side: int) -> float | Spacing | None:
    """The spacing at which patches of that many voxels show enough of a scan; None: as scanned.

    Scans of unequal spacing get the median one. It is made coarser where a scan would be much
    longer than a patch.
    """
    median_mm, target_mm = facts.median_spacing_mm, facts.fingerprint.target_spacing_mm()
    if median_mm is None or target_mm is None:
        return None
    wanted = target_mm if dims == 3 else (median_mm[0], *(max(median_mm[1:]),) * 2)
    extents_mm = [count * mm for count, mm in zip(facts.median_size, median_mm, strict=True)]
    longest = max(
        extent / mm for extent, mm in zip(extents_mm[-dims:], wanted[-dims:], strict=True)
    )
    coarser = longest / (SEEN_AT_ONCE[dims] * side)
    coarser = coarser if coarser > RESAMPLED_FROM else 1.0
    scanned = [mm for own in facts.fingerprint.spacings_mm for mm in own[-dims:]]
    z, y, x = (float(f"{coarser * mm:.3g}") for mm in wanted)
    if dims == 3:
        return z, y, x
    is_equal = max(scanned) <= RESAMPLED_FROM * min(scanned)
    return None if is_equal and coarser == 1.0 else y


def design_network(
    facts: SourceFacts, dims: Literal[2, 3], side: int, width: int, has_gpu: bool
) -> NetworkDesign:
    """A network of that width, on patches of at most `side` voxels a side."""
    spacing_mm = choose_spacing(facts, dims, side)
    median = median_of_axes(facts.prepared_sizes(spacing_mm))[-dims:]
    share = POSITIONS_SHARE if dims == 3 else 1.0
    people = len(facts.unlabelled_people) or len(facts.labelled_people)
    too_few = dims == 3 and people < PATIENTS_PER_POSITION
    return NetworkDesign(
        dims=dims,
        width=width,
        spacing_mm=spacing_mm,
        pretrain_recipe=SINGLE_SLICES_RECIPE if facts.median_size[0] == 1 else POSITIONS_RECIPE,
        pretrain_set=("patients_per_position=1",) if too_few else (),
        finetune_recipe="strong-3d" if dims == 3 else "strong",
        pretrain_size=tuple(math.ceil(min(side, share * size)) for size in median),
        finetune_size=tuple(math.ceil(min(side, size)) for size in median),
        pretrain_batch=32 if dims == 2 and has_gpu else 16,
        finetune_batch=2 if dims == 3 else 10 if has_gpu else 8,
        channels=facts.channels,
        classes=facts.classes if facts.labelled else 0,
        mirrors=1 if facts.oriented else 2**dims,
        oriented=facts.oriented,
    )
