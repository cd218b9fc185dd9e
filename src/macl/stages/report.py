"""Runs → one HTML page that opens offline, and the same numbers as JSON beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import macl
from macl.data.runs import RunRecord
from macl.data.store import Store
from macl.errors import MaclError
from macl.files import atomic_path, write_json, write_text
from macl.metrics import DEFINITIONS
from macl.pages.charts import LineChart, line_chart
from macl.pages.comparison import Comparison, caveats, compare, titles_of
from macl.pages.facts import Missing, Run, Spread, flat_settings, read_run
from macl.pages.overlays import View, choose_cases, colour_of, draw, panels, view_of
from macl.pages.words import Word, in_order, word_for
from macl.progress import progress, say
from macl.scores import MEASURES

OUTCOMES = ("loaded", "adapted", "fresh", "refused")


@dataclass(frozen=True)
class Overlay:
    """A case drawn: its role in the run, its Dice, and PNG files by kind."""

    role: str
    dice: float
    view: View
    panels: dict[str, bytes]


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


def report(runs: Sequence[Path], out: Path, *, notes: Sequence[str] = (), overlays: Path | None = None) -> Path:
    """Write one self-contained page about runs, and `<out's stem>.json` with its numbers.

    Args:
        runs: folders of runs, finished or not; what they lack is named on the page.
        out: the page, `.html`.
        notes: sentences to set at the head of the page.
        overlays: a folder to write the overlays of truth and prediction to as well, as PNG.

    Returns:
        `out`.

    Raises:
        MaclError: no run is given, one of them is none, `out` is a folder, or a run's table is broken.
    """
    if not runs:
        raise MaclError("There is no run to report: name at least one folder of a run.")
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise MaclError(f"--out {out} should name a page to write: give it a name that ends in .html.")
    found = [read_run(path) for path in dict.fromkeys(runs)]
    titles = titles_of(found)
    comparison = compare(found, titles)
    sections = []
    with progress("report", len(found)) as advance:
        for number, (run, title) in enumerate(zip(found, titles, strict=True), start=1):
            sections.append(_section(number, run, title))
            advance()
    if overlays is not None:
        _write_overlays(overlays, sections)
    said = caveats(found, comparison)
    write_json(out.with_suffix(".json"), _numbers(sections, comparison, [*notes, *said]))
    write_text(out, _render(sections, comparison, said, notes, out.with_suffix(".json").name))
    say(f"Report of {len(found)} run{'s' if len(found) > 1 else ''}: {out}")
    return out


# ---------------------------------------------------------------- the parts


def _section(number: int, run: Run, title: str) -> Section:
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
            drawn.append(Overlay(role, means[case], view, panels(view)))
    return tuple(drawn), tuple(troubles)


def _view(run: Run, case: str) -> View:
    if run.store is None:
        raise MaclError(f"The store {run.record.store} is not there.")
    return view_of(run.store, case, run.predictions / f"{case}.nii.gz", run.record.label_values)


def _side_by_side(comparison: Comparison) -> dict[str, Any] | None:
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
    pictures = [("scan", views[0], "Scan"), ("truth", views[0], "Truth")]
    pictures += [
        ("prediction", view, f"{row.title}: {100 * mean[case]:.1f}")
        for row, view, mean in zip(rows, views, means, strict=True)
    ]
    return {
        "case": case,
        "number": views[0].number,
        "slices": views[0].slices,
        "classes": rows[0].run.record.classes,
        "panels": [
            {"png": draw([(kind, view)]), "alt": f"{case}, {caption}", "caption": caption}
            for kind, view, caption in pictures
        ],
    }


def _write_overlays(folder: Path, sections: Sequence[Section]) -> None:
    for section in sections:
        for overlay in section.overlays:
            shown = [(kind, overlay.view) for kind in overlay.panels]
            caption = f"{section.title}: {overlay.role.lower()}, Dice {100 * overlay.dice:.1f} %"
            role = overlay.role.split()[0].lower()
            with atomic_path(folder / f"{section.run.path.name}-{role}-{overlay.view.case}.png") as aside:
                aside.write_bytes(draw(shown, (overlay.view.case, "truth", caption)))


def _store_facts(run: Run) -> dict[str, Any]:
    record = run.record
    facts: dict[str, Any] = {
        "path": record.store,
        "modality": record.modality,
        "channels": record.channels,
        "reader": record.reader,
        "classes": record.classes,
        "label_values": record.label_values,
        "prepared": flat_settings(record.prepared.model_dump()),
    }
    return facts | (_index_facts(run.store) if run.store else {})


def _index_facts(store: Store) -> dict[str, Any]:
    index = store.index
    voxels = [case.class_voxels for case in index.cases if case.class_voxels]
    totals = [sum(column) for column in zip(*voxels, strict=True)]
    spacings = sorted({case.spacing_mm for case in index.cases if case.spacing_mm})
    between = [
        " – ".join(dict.fromkeys(f"{end(column):.3g}" for end in (min, max))) for column in zip(*spacings, strict=True)
    ]
    sizes = sorted({case.size for case in index.cases})
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


# ---------------------------------------------------------------- the page and its numbers


def _render(
    sections: Sequence[Section], comparison: Comparison, said: Sequence[str], notes: Sequence[str], json_name: str
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("macl", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "data_uri": lambda png: "data:image/png;base64," + base64.b64encode(png).decode(),
        "class_colour": colour_of,
        "short": lambda value: f"{value:.3g}".replace("-", "−"),
    }
    records = [section.run.record for section in sections]
    by_store = {section.run.record.store_checksum: section.run for section in sections}
    conventions = dict.fromkeys(row.run.scores.convention for row in comparison.rows if row.run.scores)
    return environment.get_template("report.html.j2").render(
        title=_title(sections),
        lede=_lede(records),
        pages=sections,
        comparison=comparison,
        has_differences=any(row.against_scratch is not None for row in comparison.rows),
        side_by_side=_side_by_side(comparison),
        caveats=said,
        notes=notes,
        definitions=[(name, DEFINITIONS[name]) for name in conventions],
        stores=[_store_facts(run) for run in by_store.values()],
        json_name=json_name,
        macl_version=macl.__version__,
        date=date.today().isoformat(),
    )


def _title(sections: Sequence[Section]) -> str:
    if len(sections) == 1:
        return sections[0].title
    finetuned = sum(section.run.record.kind == "finetune" for section in sections)
    return f"{finetuned} segmenters compared" if finetuned > 1 else f"{len(sections)} runs"


def _lede(records: Sequence[RunRecord]) -> str:
    kinds = [record.kind for record in records]
    words = {"pretrain": "pre-training", "finetune": "fine-tuned"}
    counted = " and ".join(
        f"{kinds.count(kind)} {words[kind]} run{'s' if kinds.count(kind) > 1 else ''}" for kind in sorted(set(kinds))
    )
    modalities = ", ".join(sorted({record.modality for record in records}))
    structures = list(dict.fromkeys(name for record in records for name in record.classes[1:]))
    segmenting = f", segmenting {', '.join(structures)}" if structures else ""
    return f"{counted[:1].upper()}{counted[1:]} on {modalities} scans{segmenting}."


def _numbers(sections: Sequence[Section], comparison: Comparison, said: Sequence[str]) -> dict[str, Any]:
    against = {row.title: row.against_scratch for row in comparison.rows}
    return {
        "format": "macl-report",
        "version": 1,
        "macl_version": macl.__version__,
        "caveats": list(said),
        "runs": [_run_numbers(section, against.get(section.title)) for section in sections],
    }


def _run_numbers(section: Section, against_scratch: float | None) -> dict[str, Any]:
    run, record = section.run, section.run.record
    numbers: dict[str, Any] = {
        "title": section.title,
        "path": str(run.path),
        "kind": record.kind,
        "finished": record.finished,
        "start": run.start if record.kind == "finetune" else None,
        "labels": record.labels,
        "recipe": record.recipe,
        "seed": record.seed,
        "steps": section.steps_done,
        "seconds": record.seconds,
        "cases": {
            "trained": len(record.cases), "validation": len(record.validation_cases), "test": len(record.test_cases),
        },
        "last_logged": {name: points[-1][1] for name, points in run.log.items()},
        "transfer": dict(section.transfer["counts"]) if section.transfer else None,
        "missing": [item.what for item in (*run.missing, *section.troubles)],
        "settings": record.settings,
    }  # fmt: skip
    if run.scores is None:
        return numbers
    by_class = {name: {m: _spread(run.scores.spread(m, name)) for m in MEASURES} for name in run.scores.classes}
    return numbers | {
        "convention": run.scores.convention,
        "unit": run.scores.unit,
        "scores": by_class | {"mean of classes": {m: _spread(run.scores.mean(m)) for m in MEASURES}},
        "missed": run.scores.count("missed"),
        "invented": run.scores.count("invented"),
        "both_empty": run.scores.count("both_empty"),
        "dice_against_scratch": against_scratch,
    }


def _spread(of: Spread) -> dict[str, float | int | None]:
    return {"mean": of.mean, "standard_deviation": of.deviation, "n": of.n}
