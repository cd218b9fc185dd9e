"""The sections of a report, as plain values: runs, overlays of their cases, the data they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from macl.data.store import Store
from macl.report.charts import LineChart, line_chart
from macl.report.comparison import Comparison
from macl.report.facts import Missing, Run, flat_settings
from macl.report.overlays import KINDS, Kind, View, choose_cases, draw, view_of, window_of
from macl.report.words import Word, in_order, word_for
from macl.utils.errors import MaclError

OUTCOMES = ("loaded", "adapted", "fresh", "refused")


@dataclass(frozen=True)
class Overlay:
    """A case drawn: its role in the run, its Dice, and JPEG files by kind."""

    role: str
    dice: float
    view: View
    panels: Mapping[Kind, bytes]


@dataclass(frozen=True)
class Section:
    """What the page shows of one run, beyond the run itself."""

    number: int
    run: Run
    title: str
    charts: tuple[tuple[str, LineChart, Word], ...]
    overlays: tuple[Overlay, ...]
    troubles: tuple[Missing, ...]

    @property
    def settings(self) -> dict[str, str]:
        """The resolved settings by dotted name."""
        return flat_settings(self.run.record.settings)

    @property
    def steps_done(self) -> int:
        """Steps in the log."""
        return self.run.log["loss"][-1][0] if "loss" in self.run.log else 0

    @property
    def epochs(self) -> str:
        """How far the run came, in epochs."""
        return f"{self.run.log['epoch'][-1][1]:.4g} epochs" if "epoch" in self.run.log else ""

    @property
    def duration(self) -> str:
        """The time in the loop, in the two largest units."""
        minutes, seconds = divmod(round(self.run.record.seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"

    @property
    def transfer(self) -> dict[str, Any] | None:
        """The transfer table, with its outcomes counted in their order; None where there is none."""
        table = self.run.transfer
        if table is None:
            return None
        found = [tensor["outcome"] for tensor in table["tensors"]]
        counts = [(outcome, found.count(outcome)) for outcome in OUTCOMES if outcome in found]
        return {"source": table["source"], "tensors": table["tensors"], "counts": counts}


def section_of(number: int, run: Run, title: str) -> Section:
    """What the page shows of a run; cases that cannot be drawn are named among the troubles."""
    charts = tuple((name, line_chart(name, run.log[name]), word_for(name)) for name in in_order(list(run.log)))
    overlays, troubles = _overlays(run)
    return Section(number, run, title, charts, overlays, troubles)


def _overlays(run: Run) -> tuple[tuple[Overlay, ...], tuple[Missing, ...]]:
    if run.scores is None or run.store is None or not run.predictions.is_dir():
        return (), ()
    means, drawn, troubles = run.scores.dice_by_case(), [], []
    for role, case in choose_cases(means):
        try:
            view = _view(run, case)
        except MaclError as error:
            troubles.append(Missing(f"{role} is not drawn: {error}"))
        else:
            pictures: dict[Kind, bytes] = {
                kind: draw([(kind, view)], window_of([view]), file_format="jpeg") for kind in KINDS
            }
            drawn.append(Overlay(role, means[case], view, pictures))
    return tuple(drawn), tuple(troubles)


def _view(run: Run, case: str) -> View:
    if run.store is None:
        raise MaclError(f"The store {run.record.store} is not there.")
    return view_of(run.store, case, run.predictions / f"{case}.nii.gz", run.record.label_values)


def side_by_side(comparison: Comparison) -> dict[str, Any] | None:
    """One case as every run sees it: the median by the mean Dice over the runs; None where there is no such case."""
    rows = [row for row in comparison.rows if row.run.scores and row.run.store and row.run.predictions.is_dir()]
    if len(rows) < 2 or len({row.run.record.store_checksum for row in rows}) > 1:
        return None
    means = [row.run.scores.dice_by_case() for row in rows if row.run.scores]
    shared = set.intersection(*map(set, means))
    ranked = sorted(shared, key=lambda case: (sum(mean[case] for mean in means), case))
    if not ranked:
        return None
    case = ranked[len(ranked) // 2]
    try:
        views = [_view(row.run, case) for row in rows]
    except MaclError:
        return None
    window = window_of(views)
    captions = [f"{row.title}: {100 * mean[case]:.1f}" for row, mean in zip(rows, means, strict=True)]
    pictures: list[tuple[Kind, View, str]] = [
        ("scan", views[0], "Scan"),
        ("truth", views[0], "Truth"),
        *(("prediction", view, caption) for view, caption in zip(views, captions, strict=True)),
    ]
    return {
        "case": case,
        "number": views[0].number,
        "slices": views[0].slices,
        "classes": rows[0].run.record.classes,
        "panels": [
            {"jpeg": draw([(kind, view)], window, file_format="jpeg"), "alt": f"{case}, {caption}", "caption": caption}
            for kind, view, caption in pictures
        ],
    }


def store_facts(run: Run) -> dict[str, Any]:
    """What is known of the data a run was trained on: from its record, and from the store where it is still there."""
    record = run.record
    facts: dict[str, Any] = {
        "path": record.store,
        "modality": record.modality,
        "channels": record.channels,
        "reader": record.reader,
        "classes": record.classes,
        "label_values": record.label_values,
        "prepared": (
            f"plane: {record.prepared.plane}",
            f"in plane: {f'{record.prepared.spacing_mm:g} mm' if record.prepared.spacing_mm else 'as scanned'}",
            f"normalisation: {record.prepared.normalisation}",
        ),
    }
    return facts | (_index_facts(run.store) if run.store else {"index": None, "voxels": []})


def _index_facts(store: Store) -> dict[str, Any]:
    index = store.index
    voxels = [case.class_voxels for case in index.cases if case.class_voxels]
    totals = [sum(column) for column in zip(*voxels, strict=True)]
    spacings = sorted({case.spacing_mm for case in index.cases if case.spacing_mm})
    between = [
        " – ".join(dict.fromkeys(f"{end(column):.3g}" for end in (min, max))) for column in zip(*spacings, strict=True)
    ]
    sizes = sorted({case.size[1:] for case in index.cases})
    return {
        "index": index,
        "classes": index.classes,
        "label_values": index.label_values,
        "patients": len({case.patient for case in index.cases}),
        "labelled": sum(case.labelled for case in index.cases),
        "slices": sum(case.slices for case in index.cases),
        "sizes": " to ".join(dict.fromkeys(f"{size[0]} × {size[1]}" for size in (sizes[0], sizes[-1])))
        if sizes
        else "",
        "spacings": f"{between[1]} × {between[2]} mm, {between[0]} mm apart" if between else "spacing unknown",
        "voxels": [total / sum(totals) for total in totals] if totals else [],
    }
