"""Runs → one HTML page that opens offline, and the same numbers as JSON beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import macl
from macl.metrics import DEFINITIONS, Convention
from macl.records.runs import RunRecord
from macl.records.scores import MEASURES
from macl.report.comparison import Comparison, caveats, compare, titles_of
from macl.report.facts import Spread, read_run
from macl.report.overlays import KINDS, Kind, View, colour_of, draw, window_of
from macl.report.sections import Section, section_of, side_by_side, store_facts
from macl.utils.errors import MaclError
from macl.utils.files import atomic_path, write_json, write_text
from macl.utils.progress import progress, say


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
        MaclError: no run is given, one of them is none, or `out` is no page's name.
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
            sections.append(section_of(number, run, title))
            advance()
    if overlays is not None:
        _write_overlays(overlays, sections)
    said = caveats(found, comparison)
    write_json(out.with_suffix(".json"), _numbers(sections, comparison, [*notes, *said]))
    write_text(out, _render(sections, comparison, said, notes, out.with_suffix(".json").name))
    say(f"Report of {len(found)} run{'s' if len(found) > 1 else ''}: {out}")
    return out


def _write_overlays(folder: Path, sections: Sequence[Section]) -> None:
    for section in sections:
        for overlay in section.overlays:
            shown: list[tuple[Kind, View]] = [(kind, overlay.view) for kind in KINDS]
            caption = f"{section.title}: {overlay.role.lower()}, Dice {100 * overlay.dice:.1f} %"
            role = overlay.role.split()[0].lower()
            with atomic_path(folder / f"{section.run.path.name}-{role}-{overlay.view.case}.png") as aside:
                aside.write_bytes(draw(shown, window_of([overlay.view]), (overlay.view.case, "truth", caption)))


def _render(
    sections: Sequence[Section], comparison: Comparison, said: Sequence[str], notes: Sequence[str], json_name: str
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("macl", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "data_uri": lambda jpeg: "data:image/jpeg;base64," + base64.b64encode(jpeg).decode(),
        "class_colour": colour_of,
        "short": lambda value: f"{value:.3g}".replace("-", "−"),
    }
    records = [section.run.record for section in sections]
    by_store = {section.run.record.store_checksum: section.run for section in sections}
    conventions: list[Convention] = list(
        dict.fromkeys(row.run.scores.convention for row in comparison.rows if row.run.scores)
    )
    return environment.get_template("report.html.j2").render(
        title=_title(sections),
        lede=_lede(records),
        pages=sections,
        comparison=comparison,
        has_differences=any(row.against_scratch is not None for row in comparison.rows),
        side_by_side=side_by_side(comparison),
        caveats=said,
        notes=notes,
        definitions=[(name, DEFINITIONS[name]) for name in conventions],
        stores=[store_facts(run) for run in by_store.values()],
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
    segmenting = (
        f", segmenting {' and '.join((', '.join(structures[:-1]), structures[-1])) if len(structures) > 1 else structures[0]}"
        if structures
        else ""
    )
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
