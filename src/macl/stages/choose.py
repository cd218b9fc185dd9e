"""Store + a pre-trained encoder → whom to label first, and which slices of them are typical."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from macl.data.coverage import Strategy, distances, mean_distance, rank, standardised
from macl.data.resolved_split import resolve_split
from macl.data.splits import Rule, group_of, read_split
from macl.data.store import Store
from macl.data.store_index import StoredCase
from macl.inference.embedding import CaseFeatures, Embedder
from macl.inference.scans import require_same_preparation
from macl.plugins import find
from macl.records.runs import read_record
from macl.utils.errors import MaclError, listed
from macl.utils.files import AnyPath, atomic_path, clear_unfinished_copies, write_json
from macl.utils.progress import progress, say, warn
from macl.utils.user_text import spreadsheet_text

SLICES = 3
"""How many typical slices of a case are named."""

AXES = ("i", "j", "k")
"""A scan's axes as its file stores them: i runs fastest."""


@dataclass(frozen=True)
class ChosenCase:
    """A scan of somebody to label.

    Attributes:
        case: its name.
        slices: numbers of typical slices, the most typical first, from 0 as the scan's file counts
            them along `axis`.
        axis: "i", "j" or "k", the file's first, second or third axis.
    """

    case: str
    slices: tuple[int, ...]
    axis: str


@dataclass(frozen=True)
class ChosenPerson:
    """Somebody to label.

    Attributes:
        rank: 1 is to be labelled first.
        person: as the group rule names them.
        cases: their scans.
        mean_distance: of all people to the nearest who is labelled or chosen up to here, as a share
            of what it is with the first alone.
    """

    rank: int
    person: str
    cases: tuple[ChosenCase, ...]
    mean_distance: float


def choose(
    store: AnyPath,
    out: AnyPath | None = None,
    *,
    run: AnyPath,
    count: int,
    among: Literal["unlabelled", "labelled"] = "unlabelled",
    strategy: Strategy = "coverage",
    split: AnyPath | None = None,
    group: Rule = "patient",
    batch_size: int | None = None,
    device: str = "auto",
) -> list[ChosenPerson]:
    """Rank people by how well they stand for all others in the features of a run.

    A person is the mean of the bottleneck over their scans, standardised over people. Those who are
    labelled already count as chosen.

    Args:
        store: folder made by `prepare`, with the settings of the run's.
        out: file to write (.json or .csv); None: nothing is written.
        run: a finished run, such as a pre-training.
        count: how many people to choose.
        among: "unlabelled"; or "labelled", as if they were not labelled yet, to see how the choice
            would have been.
        strategy: "coverage" or "farthest", see `macl.data.coverage`.
        split: its test, validation and reserved people are left out; its group rule holds.
        group: who is one person, without a split.
        batch_size: slices or windows at a time; None: as `predict` takes.
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        The chosen, in order.

    Raises:
        MaclError: fewer people are left than are asked for, the features do not tell them apart,
            the run or the split does not fit the store, or `out` is no .json or .csv file.
    """
    store, run, out = Path(store), Path(run), None if out is None else Path(out)
    if out is not None and out.suffix not in (".json", ".csv"):
        raise MaclError(f"--out {out} should be a file that ends in .json or .csv.")
    if strategy not in get_args(Strategy):
        raise MaclError(
            f"The strategy {strategy!r} is unknown; known: {listed(get_args(Strategy))}."
        )
    opened, record = Store.open(store), read_record(run)
    require_same_preparation(opened, record)
    cases_of = _people(opened, split, group)
    labelled = {
        person for person, cases in cases_of.items() if any(case.labelled for case in cases)
    }
    candidates = labelled if among == "labelled" else cases_of.keys() - labelled
    if not candidates:
        raise MaclError(
            f"There is nobody {among} in {store} to choose from: name --among "
            f"{'unlabelled' if among == 'labelled' else 'labelled'} to choose among the others."
        )
    if not 0 < count <= len(candidates):
        raise MaclError(f"--count {count} does not fit {len(candidates)} {among} people: lower it.")
    embedder = Embedder(run, record, find("models", record.settings["backbone"]), device)
    features = _embed(opened, cases_of, embedder, batch_size)
    people = list(cases_of)
    apart = _apart(people, cases_of, features, run)
    numbers = {person: number for number, person in enumerate(people)}
    known = [numbers[person] for person in sorted(labelled - candidates)]
    order = rank(apart, count, strategy, [numbers[person] for person in candidates], known)
    whole = mean_distance(apart, [*known, order[0]]) or 1.0
    chosen = [
        ChosenPerson(
            position + 1,
            people[number],
            tuple(_chosen_case(case, features[case.name]) for case in cases_of[people[number]]),
            round(mean_distance(apart, [*known, *order[: position + 1]]) / whole, 4),
        )
        for position, number in enumerate(order)
    ]
    if out is not None:
        _write(out, chosen, store, run, strategy)
        say(f"Wrote {out}.")
    return chosen


def _people(store: Store, split: AnyPath | None, group: Rule) -> Mapping[str, Sequence[StoredCase]]:
    """Everybody who may be labelled, sorted, with their cases."""
    kept_out: set[str] = set()
    if split is not None:
        resolved = resolve_split(read_split(split), store)
        group = resolved.split.group
        kept_out = {*resolved.test, *resolved.validation, *resolved.reserved}
    cases_of: dict[str, list[StoredCase]] = {}
    for case in store.index.cases:
        person = group_of(case.patient, group)
        if person not in kept_out:
            cases_of.setdefault(person, []).append(case)
    return dict(sorted(cases_of.items()))


def _embed(
    store: Store,
    cases_of: Mapping[str, Sequence[StoredCase]],
    embedder: Embedder,
    batch_size: int | None,
) -> dict[str, CaseFeatures]:
    cases = [case for own in cases_of.values() for case in own]
    features: dict[str, CaseFeatures] = {}
    with progress("Embedding", len(cases)) as advance:
        for case in cases:
            image = store.read(case.name)
            features[case.name] = embedder.embed(image, case.normalisation, batch_size)
            advance(note=case.name)
    return features


def _apart(
    people: Sequence[str],
    cases_of: Mapping[str, Sequence[StoredCase]],
    features: Mapping[str, CaseFeatures],
    run: Path,
) -> np.ndarray:
    """(N, N) distances between people."""
    means = np.stack(
        [
            np.mean([features[case.name].mean for case in cases_of[person]], axis=0)
            for person in people
        ]
    )
    told_apart = standardised(means)
    if len(people) > 1 and not told_apart.shape[1]:
        raise MaclError(
            f"The features of {run} are the same for everybody: its training has collapsed, so "
            "choose with another run."
        )
    silent = means.shape[1] - told_apart.shape[1]
    if 2 * silent > means.shape[1]:
        warn(
            f"Warning: {silent} of {means.shape[1]} features of {run} never change: its training "
            "may have collapsed."
        )
    return distances(told_apart)


def _chosen_case(case: StoredCase, features: CaseFeatures) -> ChosenCase:
    """A case with the slices that stand for all its others."""
    starts, layers = np.unique(features.starts[:, 0], return_inverse=True)
    means = [features.windows[layers == layer].mean(axis=0) for layer in range(len(starts))]
    apart = distances(standardised(np.stack(means)))
    typical = rank(apart, min(SLICES, len(starts)), "coverage", range(len(starts)))
    middles = starts[typical] + (features.sides[0] - 1) // 2
    slices = dict.fromkeys(scanned_slice(case, int(middle)) for middle in middles)
    return ChosenCase(case.name, tuple(slices), AXES[2 - case.orientation.permutation[0]])


def scanned_slice(case: StoredCase, number: int) -> int:
    """A slice of a stored case → the nearest one of its scan, as the scan's file counts them."""
    orientation = case.orientation
    scanned, kept = orientation.scanned_size[0], orientation.kept_size[0]
    nearest = round((number + 0.5) * kept / case.size[0] - 0.5)
    nearest = min(max(nearest, 0), kept - 1) + (orientation.crop[0][0] if orientation.crop else 0)
    return scanned - 1 - nearest if orientation.flipped[0] else nearest


def render(chosen: Sequence[ChosenPerson]) -> str:
    """The choice as a table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in ("rank", "person", "mean distance", "case", "typical slices"):
        table.add_column(head, justify="right" if head in ("rank", "mean distance") else "left")
    for person in chosen:
        for number, case in enumerate(person.cases):
            first = (str(person.rank), person.person, f"{100 * person.mean_distance:.0f} %")
            slices = f"{', '.join(map(str, case.slices))} along {case.axis}"
            table.add_row(*(first if number == 0 else ("", "", "")), case.case, slices)
    console = Console(width=140, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def about(
    chosen: Sequence[ChosenPerson], store: Path, run: Path, strategy: Strategy
) -> dict[str, Any]:
    """The choice as JSON."""
    return {
        "format": "macl-choice",
        "version": 1,
        "store": str(store),
        "run": str(run),
        "strategy": strategy,
        "people": [asdict(person) for person in chosen],
    }


def _write(
    out: Path, chosen: Sequence[ChosenPerson], store: Path, run: Path, strategy: Strategy
) -> None:
    clear_unfinished_copies(out)
    if out.suffix == ".json":
        write_json(out, about(chosen, store, run, strategy))
        return
    with atomic_path(out) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("rank", "person", "mean_distance", "case", "axis", "slices"))
        for person in chosen:
            for case in person.cases:
                slices = " ".join(map(str, case.slices))
                row = (person.rank, spreadsheet_text(person.person), person.mean_distance)
                writer.writerow((*row, spreadsheet_text(case.case), case.axis, slices))
