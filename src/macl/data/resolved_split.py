"""What a split means for the cases of a store: who and what is on which side of it, and that nothing leaks across.

All cases of a person (two frames of a heart, two sides of a brain) lie on one side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

from macl.data.splits import Split, group_of, last_number
from macl.data.store import Store
from macl.utils.errors import MaclError, listed
from macl.utils.progress import say


@dataclass(frozen=True)
class ResolvedSplit:
    """A split, as cases of one store; see `resolve`.

    Attributes:
        split: the split file.
        groups: case → person, for every case of the store.
        test: people of the test; validation likewise.
        test_cases: labelled cases of the test people; validation_cases likewise.
        pretraining_cases: cases, labelled or not, of everyone but the test people.
        budget_cases: budget → labelled cases to train on.
    """

    split: Split
    groups: Mapping[str, str]
    test: tuple[str, ...]
    validation: tuple[str, ...]
    test_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    pretraining_cases: tuple[str, ...]
    budget_cases: Mapping[str, tuple[str, ...]]

    def labelled_cases(self, budget: str) -> tuple[str, ...]:
        """Labelled cases that a budget trains on; MaclError, naming the budgets there are, if it is not one."""
        if budget not in self.budget_cases:
            raise MaclError(
                f"The split {self.split.name!r} has no label budget {budget!r}; it has {listed(self.budget_cases)}: name one."
            )
        return self.budget_cases[budget]

    def people(self, cases: Iterable[str]) -> tuple[str, ...]:
        """Whose cases these are, sorted."""
        return tuple(sorted({self.groups[case] for case in cases}))


def resolve(split: Split, store: Store, *, allow_overlap: bool = False) -> ResolvedSplit:
    """What `split` means for the cases of `store`.

    Budgets that do not contain the smaller ones are said. Scans of test people are in no other part; where the split
    names a test person's other scans for training, it is refused, or with `allow_overlap` taken as it stands and said.
    A scan whose image is that of a test scan, under whatever name, is left out of the other parts too, and said.

    Raises:
        MaclError: the store lacks someone the split names, or their labels, or someone is in two parts.
    """
    groups = {case.name: group_of(case.patient, split.group) for case in store.index.cases}
    test_cases = _labelled_cases(split, store, split.test, "the test")
    validation_cases = _labelled_cases(split, store, split.validation, "validation")
    budget_cases = {
        name: _labelled_cases(split, store, people, f"the budget {name}") for name, people in split.budgets.items()
    }
    test = {groups[case] for case in test_cases}
    resolved = ResolvedSplit(
        split=split,
        groups=groups,
        test=tuple(sorted(test)),
        validation=tuple(sorted({groups[case] for case in validation_cases})),
        test_cases=test_cases,
        validation_cases=validation_cases,
        pretraining_cases=tuple(case for case, group in groups.items() if group not in test),
        budget_cases=budget_cases,
    )
    _check_apart(resolved, allow_overlap)
    _say_where_not_nested(split)
    return resolved if allow_overlap else _without_copies(resolved, store)


def overlap(patients: Iterable[str], resolved: ResolvedSplit) -> tuple[str, ...]:
    """Test people of a split who are among `patients`, such as those of a pre-training run; sorted."""
    seen = set()
    for patient in patients:
        with suppress(MaclError):  # a patient of another data set, whom this one's rule cannot name
            seen.add(group_of(patient, resolved.split.group))
    return tuple(sorted(seen.intersection(resolved.test)))


def _patients_by_name(split: Split, store: Store) -> Mapping[str, set[str]]:
    """The names that the split can call people by → the store's patients of that name."""
    patients = sorted({case.patient for case in store.index.cases})
    if split.identify_by == "index":
        labelled = sorted({case.patient for case in store.index.cases if case.labelled})
        if len(labelled) != split.labelled_patients:
            raise MaclError(
                f"The split {split.name!r} counts through {split.labelled_patients} labelled patients, but the store "
                f"{store.path} has {len(labelled)}: prepare the whole data set, so that places mean the same."
            )
        return {str(place): {patient} for place, patient in enumerate(labelled)}
    found: dict[str, set[str]] = defaultdict(set)
    for patient in patients:
        if split.identify_by == "person":
            found[group_of(patient, split.group)].add(patient)
        elif number := last_number(patient):
            found[str(int(number.group()))].add(patient)
    if split.identify_by == "number":
        named = {*split.test, *split.validation, *(person for people in split.budgets.values() for person in people)}
        for person in sorted(named.intersection(found)):
            if len(found[person]) > 1:
                raise MaclError(
                    f"The split {split.name!r} names number {person}, which in {store.path} is "
                    f"{listed(sorted(found[person]))}: prepare one of these data sets alone."
                )
    return dict(found)


def _labelled_cases(split: Split, store: Store, people: Collection[str], part: str) -> tuple[str, ...]:
    """The labelled cases of people as the split names them, in the store's order."""
    known = _patients_by_name(split, store)
    labelled = {case.name: case.patient for case in store.index.cases if case.labelled}
    missing = [person for person in people if person not in known]
    if missing:
        raise MaclError(
            f"The split {split.name!r} names {listed(missing)} for {part}, whom the store {store.path} does not hold "
            f"({listed(known)} are there): use the split of this data set, or see which cases were refused."
        )
    unlabelled = [person for person in people if known[person].isdisjoint(labelled.values())]
    if unlabelled:
        raise MaclError(
            f"The split {split.name!r} needs labels of {listed(unlabelled)} for {part}, but the store {store.path} "
            "has none: prepare these cases with their labels."
        )
    patients = set().union(*(known[person] for person in people))
    return tuple(case for case, patient in labelled.items() if patient in patients)


def _check_apart(resolved: ResolvedSplit, allow_overlap: bool) -> None:
    split = resolved.split
    training = {resolved.groups[case] for cases in resolved.budget_cases.values() for case in cases}
    both = training.intersection(resolved.validation)
    if both:
        raise MaclError(
            f"The split {split.name!r} has {listed(sorted(both))} both in a label budget and in validation: "
            "take them out of one."
        )
    leaked = training.union(resolved.validation).intersection(resolved.test)
    if not leaked:
        return
    finding = (
        f"The split {split.name!r} puts scans of {len(leaked)} test people into training or validation "
        f"({listed(sorted(leaked))})"
    )
    if not allow_overlap:
        raise MaclError(f"{finding}: use a split made by person, or --allow-overlap to go on, which is recorded.")
    say(f"{finding}; going on, since overlap is allowed: the scores will be too good.")


def _without_copies(resolved: ResolvedSplit, store: Store) -> ResolvedSplit:
    """The split without cases that have the very image of a test case, such as one patient under two names."""
    images = {case.name: case.arrays["image"].sha256 for case in store.index.cases}
    tested = {images[case]: case for case in resolved.test_cases}
    copies = {
        case: tested[image] for case, image in images.items() if image in tested and case not in resolved.test_cases
    }
    used = {*resolved.pretraining_cases, *(case for cases in resolved.budget_cases.values() for case in cases)}
    if seen := sorted(used.intersection(copies)):
        pairs = listed(f"{case} (of {copies[case]})" for case in seen)
        say(f"Left out of training, since their image is that of a test scan under another name: {pairs}.")

    def kept(cases: Iterable[str]) -> tuple[str, ...]:
        return tuple(case for case in cases if case not in copies)

    return replace(
        resolved,
        validation_cases=kept(resolved.validation_cases),
        pretraining_cases=kept(resolved.pretraining_cases),
        budget_cases={name: kept(cases) for name, cases in resolved.budget_cases.items()},
    )


def _say_where_not_nested(split: Split) -> None:
    budgets = sorted(split.budgets.items(), key=lambda budget: len(budget[1]))
    for (smaller, fewer), (larger, more) in pairwise(budgets):
        missing = set(fewer).difference(more)
        if missing:
            say(f"In the split {split.name!r} the budget {larger} lacks {len(missing)} people of the budget {smaller}.")
