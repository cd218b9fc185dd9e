"""Draws of the labelled people: a split with the same test, and others among whom labels fall."""

from __future__ import annotations

from macl.data.resolved_split import ResolvedSplit, resolve_split
from macl.data.splits import Split, in_drawn_order
from macl.data.store import Store
from macl.utils.errors import MaclError


def draw_labelled_people(resolved: ResolvedSplit, store: Store, draw: int) -> Split:
    """A split whose budgets hold other people, as many as before, each within the next larger.

    They are drawn among all labelled people but those of test and validation, who stay, and
    reserved ones. A draw with the number of the seed of `macl split` chooses the people whom that
    chose (unless it was told to stratify).

    Args:
        resolved: the split to draw from, applied to `store`.
        store: where the cases are.
        draw: number of the draw.

    Raises:
        MaclError: there are too few people, or the split names single scans of a person.
    """
    split = resolved.split
    labelled = {case.name for case in store.index.cases if case.labelled}
    pool = resolved.people(labelled.intersection(resolved.pretraining_cases))
    order = in_drawn_order(set(pool).difference(resolved.validation), draw)
    counts = {name: len(people) for name, people in split.budgets.items()}
    largest = max(counts.values(), default=0)
    if largest > len(order):
        raise MaclError(
            f"The largest budget of the split {split.name!r} needs {largest} people, "
            f"but {len(order)} can be drawn: leave the draws out of the grid."
        )
    drawn = Split(
        name=f"{split.name}-draw{draw}",
        source=f"draw {draw} among {len(order)} labelled people outside the test of {split.name}",
        seed=draw,
        group=split.group,
        test=resolved.test,
        validation=resolved.validation,
        reserved=resolved.reserved,
        budgets={name: tuple(order[:count]) for name, count in counts.items()},
    )
    again = resolve_split(drawn, store)
    if any(
        getattr(again, name) != getattr(resolved, name)
        for name in ("test_cases", "validation_cases", "pretraining_cases")
    ):
        raise MaclError(
            f"The split {split.name!r} tests or validates on some scans of a person and not on "
            "others: leave the draws out of the grid, or make a split by person."
        )
    return drawn
