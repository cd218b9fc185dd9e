"""A split applied to a store: which cases train, validate and test, and that none leaks.

All cases of a person (two frames of a heart, two sides of a brain) stay together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

from macl.data.splits import ALL, Split, group_of, last_number
from macl.data.store import Store
from macl.utils.errors import MaclError, listed
from macl.utils.progress import warn


@dataclass(frozen=True)
class ResolvedSplit:
    """A split as cases of one store; see `resolve_split`.

    Attributes:
        split: the split file.
        groups: case → person, for every case of the store.
        test: the test people.
        validation: the validation people.
        reserved: people who are kept out of everything.
        test_cases: labelled cases of the test people.
        validation_cases: labelled cases of the validation people.
        pretraining_cases: all cases of everyone but test and reserved people, labelled or not.
        budget_cases: budget → labelled cases to train on.
        all_labelled_cases: those of everyone but test, validation and reserved people.
    """

    split: Split
    groups: Mapping[str, str]
    test: tuple[str, ...]
    validation: tuple[str, ...]
    reserved: tuple[str, ...]
    test_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    pretraining_cases: tuple[str, ...]
    budget_cases: Mapping[str, tuple[str, ...]]
    all_labelled_cases: tuple[str, ...]

    def labelled_cases(self, budget: str) -> tuple[str, ...]:
        """Labelled cases that a budget trains on; "all" is known to every split.

        Raises:
            MaclError: there is no such budget; the known ones are named.
        """
        known = {ALL: self.all_labelled_cases, **self.budget_cases}
        if budget not in known:
            raise MaclError(
                f"The split {self.split.name!r} has no label budget {budget!r}; it has "
                f"{listed([*self.budget_cases, ALL])}: name one."
            )
        if not known[budget]:
            raise MaclError(
                f"The split {self.split.name!r} leaves nobody with labels to train on: name "
                "another label budget or split."
            )
        return known[budget]

    def unlabelled_cases(self, budget: str) -> tuple[str, ...]:
        """Cases that a budget may train on without labels: all but its labelled ones, and none of
        the test and validation people.

        Raises:
            MaclError: there is no such budget.
        """
        apart = {*self.labelled_cases(budget), *self.validation_cases}
        return tuple(
            case
            for case in self.pretraining_cases
            if case not in apart and self.groups[case] not in self.validation
        )

    def people(self, cases: Iterable[str]) -> tuple[str, ...]:
        """The people whose cases these are, sorted."""
        return tuple(sorted({self.groups[case] for case in cases}))


def resolve_split(split: Split, store: Store, *, allow_overlap: bool = False) -> ResolvedSplit:
    """Find the cases of a store that a split names, and keep test people out of training.

    A scan with the same image as a test, validation or reserved scan, under whatever name, is left
    out of training too, with a message; one with the image of a reserved scan also out of the test.
    A budget that lacks people of a smaller one is reported.

    Args:
        split: who trains, validates and tests.
        store: where the cases are.
        allow_overlap: take a split as it stands, with a message, though it trains or validates on
            scans of test people.

    Raises:
        MaclError: the store lacks someone the split names, or their labels, or the split uses
            someone twice.
    """
    groups = {case.name: group_of(case.patient, split.group) for case in store.index.cases}
    test_cases = _labelled_cases(split, store, split.test, "the test")
    validation_cases = _labelled_cases(split, store, split.validation, "validation")
    budget_cases = {
        name: _labelled_cases(split, store, people, f"the budget {name}")
        for name, people in split.budgets.items()
    }
    test = {groups[case] for case in test_cases}
    reserved = {groups[case] for case in _labelled_cases(split, store, split.reserved, "reserve")}
    validation = {groups[case] for case in validation_cases}
    pretraining_cases = tuple(
        case for case, group in groups.items() if group not in test | reserved
    )
    resolved = ResolvedSplit(
        split=split,
        groups=groups,
        test=tuple(sorted(test)),
        validation=tuple(sorted(validation)),
        reserved=tuple(sorted(reserved)),
        test_cases=test_cases,
        validation_cases=validation_cases,
        pretraining_cases=pretraining_cases,
        budget_cases=budget_cases,
        all_labelled_cases=tuple(
            case
            for case in pretraining_cases
            if store.case(case).labelled and groups[case] not in validation
        ),
    )
    _check_apart(resolved, allow_overlap)
    _report_missing_people(split)
    return resolved if allow_overlap else _without_copies(resolved, store)


def split_of_everybody(store: Store) -> Split:
    """The split of a final model: all labelled people train, and nobody is left to test it.

    Raises:
        MaclError: nobody is labelled.
    """
    people = tuple(sorted({case.patient for case in store.index.cases if case.labelled}))
    if not people:
        raise MaclError(f"The store {store.path} has no labels: prepare cases with their labels.")
    return Split(name="everybody", source="no split was named", test=(), budgets={ALL: people})


def find_test_people(patients: Iterable[str], resolved: ResolvedSplit) -> tuple[str, ...]:
    """The test people of a split who are among these patients, sorted.

    Args:
        patients: such as those of a pre-training run.
        resolved: the split.
    """
    people = set()
    for patient in patients:
        with suppress(MaclError):  # a patient of another data set, whom the rule cannot group
            people.add(group_of(patient, resolved.split.group))
    return tuple(sorted(people.intersection(resolved.test)))


def _patients_by_name(split: Split, store: Store) -> Mapping[str, set[str]]:
    """The names that a split may use → the store's patients whom they mean."""
    patients = sorted({case.patient for case in store.index.cases})
    if split.identify_by == "index":
        labelled = sorted({case.patient for case in store.index.cases if case.labelled})
        if len(labelled) != split.labelled_patients:
            raise MaclError(
                f"The split {split.name!r} numbers {split.labelled_patients} labelled patients, "
                f"but the store {store.path} has {len(labelled)}: prepare the whole data set, so "
                "that the numbers mean the same patients."
            )
        return {str(index): {patient} for index, patient in enumerate(labelled)}
    by_name: dict[str, set[str]] = defaultdict(set)
    for patient in patients:
        if split.identify_by == "person":
            by_name[group_of(patient, split.group)].add(patient)
        elif number := last_number(patient):
            by_name[str(int(number.group()))].add(patient)
    if split.identify_by == "number":
        named = {*split.test, *split.validation, *split.reserved}.union(*split.budgets.values())
        for person in sorted(named.intersection(by_name)):
            if len(by_name[person]) > 1:
                raise MaclError(
                    f"The split {split.name!r} names number {person}, which in {store.path} is "
                    f"{listed(sorted(by_name[person]))}: prepare one of these data sets alone."
                )
    return dict(by_name)


def _labelled_cases(
    split: Split, store: Store, people: Collection[str], purpose: str
) -> tuple[str, ...]:
    """The labelled cases of people whom the split names for a purpose, in the store's order."""
    known = _patients_by_name(split, store)
    labelled = {case.name: case.patient for case in store.index.cases if case.labelled}
    missing = [person for person in people if person not in known]
    if missing:
        raise MaclError(
            f"The split {split.name!r} names {listed(missing)} for {purpose}, whom the store "
            f"{store.path} does not hold ({listed(known)} are there): use the split of this data "
            "set, or see which cases were refused."
        )
    unlabelled = [person for person in people if known[person].isdisjoint(labelled.values())]
    if unlabelled:
        raise MaclError(
            f"The split {split.name!r} needs labels of {listed(unlabelled)} for {purpose}, but the "
            f"store {store.path} has none: prepare these cases with their labels."
        )
    patients = set().union(*(known[person] for person in people))
    return tuple(case for case, patient in labelled.items() if patient in patients)


def _check_apart(resolved: ResolvedSplit, allow_overlap: bool) -> None:
    split = resolved.split
    training = {resolved.groups[case] for cases in resolved.budget_cases.values() for case in cases}
    both = training.intersection(resolved.validation)
    if both:
        raise MaclError(
            f"The split {split.name!r} has {listed(sorted(both))} both in a label budget and in "
            "validation: take them out of one."
        )
    leaked = training.union(resolved.validation).intersection(resolved.test)
    if not leaked:
        return
    finding = (
        f"The split {split.name!r} puts scans of {len(leaked)} test people into training or "
        f"validation ({listed(sorted(leaked))})"
    )
    if not allow_overlap:
        raise MaclError(
            f"{finding}: use a split made by person, or add --allow-overlap, which is recorded."
        )
    warn(f"{finding}, which --allow-overlap accepts: the scores will be too good.")


def _without_copies(resolved: ResolvedSplit, store: Store) -> ResolvedSplit:
    """Leave out copies of scans that are held out, such as of one patient under two names."""
    images = {case.name: case.arrays["image"].sha256 for case in store.index.cases}
    reserved = [case for case, group in resolved.groups.items() if group in resolved.reserved]
    apart = _without_copies_of(reserved, "reserved", resolved, images)
    apart = _without_copies_of(apart.test_cases, "test", apart, images)
    return _without_copies_of(apart.validation_cases, "validation", apart, images)


def _without_copies_of(
    held_out: Collection[str], what: str, resolved: ResolvedSplit, images: Mapping[str, str]
) -> ResolvedSplit:
    """Leave out the copies of these cases, with a message; `images` is case → digest."""
    originals = {images[case]: case for case in held_out}
    copies = {
        case: originals[image]
        for case, image in images.items()
        if image in originals and case not in held_out
    }
    used = {*resolved.test_cases, *resolved.validation_cases, *resolved.pretraining_cases}
    if left_out := sorted(used.union(*resolved.budget_cases.values()).intersection(copies)):
        pairs = listed(f"{case} (of {copies[case]})" for case in left_out)
        warn(f"Left out, as copies of {what} scans under other names: {pairs}.")

    def without_copies(cases: Iterable[str]) -> tuple[str, ...]:
        return tuple(case for case in cases if case not in copies)

    return replace(
        resolved,
        test_cases=without_copies(resolved.test_cases),
        validation_cases=without_copies(resolved.validation_cases),
        pretraining_cases=without_copies(resolved.pretraining_cases),
        budget_cases={name: without_copies(cases) for name, cases in resolved.budget_cases.items()},
        all_labelled_cases=without_copies(resolved.all_labelled_cases),
    )


def _report_missing_people(split: Split) -> None:
    budgets = sorted(split.budgets.items(), key=lambda budget: len(budget[1]))
    for (smaller, fewer), (larger, more) in pairwise(budgets):
        missing = set(fewer).difference(more)
        if missing:
            warn(
                f"In the split {split.name!r} the budget {larger} lacks {len(missing)} people of "
                f"the budget {smaller}."
            )
