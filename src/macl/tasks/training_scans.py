"""Warnings about the scans that a segmenter is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from macl.data.store import Store
from macl.io.deidentification import is_pseudonym
from macl.records.training_range import measure_range, range_differences
from macl.tasks.initial_weights import InitialWeights
from macl.utils.errors import listed
from macl.utils.progress import warn


def warn_of_unseen_classes(store: Store, cases: Sequence[str], labels: str) -> None:
    """Say which classes no label of a budget shows."""
    voxels = [found for name in cases if (found := store.case(name).class_voxels)]
    if not voxels:
        return
    classes = zip(store.index.classes, np.sum(voxels, axis=0), strict=True)
    if unseen := [name for name, count in classes if not count]:
        warn(
            f"Warning: no training label of {labels!r} ({len(cases)} cases) shows "
            f"{listed(unseen)}, so the model cannot learn to find it: choose a larger budget, or "
            "other cases."
        )


def warn_of_other_pseudonyms(store: Store, weights: InitialWeights) -> None:
    """Say so where the names in a store and those of a pre-training cannot be compared."""
    own = {case.patient for case in store.index.cases if is_pseudonym(case.patient)}
    theirs = {patient for patient in weights.patients if is_pseudonym(patient)}
    if own and theirs and not own & theirs:
        warn(
            f"Warning: the patients' names in {store.path} and those of {weights.name} are hashed "
            "apart, so it is not known whether test people were among its training data: prepare "
            "both stores with one private file (a copy of STORE.private.json beside the new one)."
        )


def warn_of_other_scans(store: Store, cases: Sequence[str], weights: InitialWeights) -> None:
    """Say in what the scans are unlike those of the pre-training."""
    if weights.trained_on is None:
        return
    for trained_on, own in range_differences(weights.trained_on, measure_range(store, cases)):
        warn(f"Warning: {weights.name} was {trained_on}, but these scans are unlike that: {own}.")
