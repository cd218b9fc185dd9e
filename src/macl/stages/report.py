"""Runs → one HTML page that opens offline, and its numbers as JSON beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import macl
from macl.metrics import DEFINITIONS, Convention
from macl.pages.comparison import Comparison, caveats, compare, titles_of
from macl.pages.label_efficiency import label_efficiency
from macl.pages.overlays import (
    OVERLAY_KINDS,
    CaseSlice,
    OverlayKind,
    colour_of,
    crop_around,
    draw,
)
from macl.pages.reported_run import RunScores, Spread, read_run
from macl.pages.scored_cases import MOST_BYTES, ScoredCase, about_volumes, scored_cases
from macl.pages.scripts import niivue, own_script
from macl.pages.sections import Section, section_of, side_by_side, store_facts
from macl.pages.verdict import verdict
from macl.records.runs import RunRecord, runs_at
from macl.records.scores import COUNTED_OUTCOMES, MEASURES
from macl.tasks.pretraining import way_out
from macl.utils.errors import MaclError
from macl.utils.files import (
    AnyPath,
    atomic_path,
    clear_unfinished_copies,
    paths_of,
    write_json,
    write_text,
)
from macl.utils.progress import progress, say
from macl.utils.text import counted


def report(
    runs: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    notes: Sequence[str] = (),
    overlays: AnyPath | None = None,
    volumes: bool = True,
) -> Path:
    """Write one self-contained page about runs, and its numbers to `<out's stem>.json`.

    Args:
        runs: folder of a run, finished or not, or several; the page names what they lack.
        out: the page, `.html`.
        notes: sentences for the head of the page.
        overlays: a folder for the overlays of truth and prediction as PNG files; None: only the
            page shows them.
        volumes: whether the page holds the test cases' volumes, those with the lowest Dice first.

    Returns:
        `out`.

    Raises:
        MaclError: no run is given, one of them is not a run, or `out` is not the name of a page.
    """
    out = Path(out)
    if not runs:
        raise MaclError("There is no run to report: name at least one folder of a run.")
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise MaclError(
            f"--out {out} should name a page to write: give it a name that ends in .html."
        )
    named = [run for path in paths_of(runs) for run in runs_at(path) or [path]]
    reported = [read_run(path) for path in dict.fromkeys(named)]
    titles = titles_of([[run] for run in reported])
    comparison = compare(reported)
    sections = []
    with progress("report", len(reported)) as advance:
        for number, (run, title) in enumerate(zip(reported, titles, strict=True), start=1):
            sections.append(section_of(number, run, title))
            advance()
    if overlays is not None:
        _write_overlays(Path(overlays), sections)
    cases = scored_cases(comparison.rows, MOST_BYTES if volumes else 0)
    warnings = caveats(reported, comparison)
    numbers = out.with_suffix(".json")
    for path in (out, numbers):
        clear_unfinished_copies(path)
    write_json(numbers, _numbers(sections, comparison, [*notes, *warnings]))
    write_text(out, _render(sections, comparison, cases, warnings, notes, numbers.name))
    say(f"Report of {counted(len(reported), 'run')}: {out}")
    return out


def _write_overlays(folder: Path, sections: Sequence[Section]) -> None:
    for section in sections:
        for overlay in section.overlays:
            case = overlay.slice.case
            title = f"{section.title}: {overlay.role.lower()}, Dice {100 * overlay.dice:.1f} %"
            panels: list[tuple[OverlayKind, CaseSlice]]
            panels = [(kind, overlay.slice) for kind in OVERLAY_KINDS]
            picture = draw(panels, crop_around([overlay.slice]), (case, "truth", title))
            role = overlay.role.split()[0].lower()
            with atomic_path(folder / f"{section.run.path.name}-{role}-{case}.png") as aside:
                aside.write_bytes(picture)


def _markup(svg: str | None) -> Any:
    """A figure of ours, which the template does not escape."""
    from markupsafe import Markup

    return Markup(svg) if svg else None


def _render(
    sections: Sequence[Section],
    comparison: Comparison,
    cases: Sequence[ScoredCase],
    warnings: Sequence[str],
    notes: Sequence[str],
    numbers_name: str,
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("macl", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "data_uri": lambda jpeg: "data:image/jpeg;base64," + base64.b64encode(jpeg).decode(),
        "class_colour": colour_of,
        "short": lambda value: f"{value:.3g}".replace("-", "−"),
    }
    by_store = {section.run.record.store_checksum: section.run for section in sections}
    conventions: dict[Convention, None] = dict.fromkeys(
        row.scores.convention for row in comparison.rows
    )
    own_scripts = [own_script(name) for name in ("viewer.js", "report.js")]
    library, packed_library = niivue()
    has_volumes = any(case.volume for case in cases)
    return environment.get_template("report.html.j2").render(
        own_scripts=own_scripts,
        allowed_scripts=" ".join(script.source for script in (*own_scripts, library)),
        library=packed_library if has_volumes else None,
        cases=[case.for_page() for case in cases],
        volumes=about_volumes(cases),
        title=_title(sections),
        lede=_lede([section.run.record for section in sections]),
        verdict=verdict(comparison.rows),
        sections=sections,
        comparison=comparison,
        has_differences=any(row.against_scratch is not None for row in comparison.rows),
        side_by_side=side_by_side(comparison),
        label_efficiency=_markup(label_efficiency(comparison.rows)),
        caveats=warnings,
        way_out=way_out,
        notes=notes,
        counted_outcomes=COUNTED_OUTCOMES,
        definitions=[(name, DEFINITIONS[name]) for name in conventions],
        stores=[store_facts(run) for run in by_store.values()],
        json_name=numbers_name,
        macl_version=macl.__version__,
        date=date.today().isoformat(),
    )


def _title(sections: Sequence[Section]) -> str:
    if len(sections) == 1:
        return sections[0].title
    finetuned = sum(section.run.record.is_segmenter for section in sections)
    return f"{finetuned} segmenters compared" if finetuned > 1 else f"{len(sections)} runs"


def _lede(records: Sequence[RunRecord]) -> str:
    """One sentence about all runs: how many of which kind, on which scans, segmenting what."""
    kinds = [record.kind for record in records]
    names = {
        "finetune": "fine-tuned run",
        "selftrain": "self-trained run",
        "pretrain": "pre-training run",
    }
    counts = [counted(kinds.count(kind), names[kind]) for kind in names if kind in kinds]
    modalities = ", ".join(sorted({record.modality for record in records}))
    structures = list(dict.fromkeys(name for record in records for name in record.classes[1:]))
    last = [" and ".join(structures[-2:])] if structures else []
    segmenting = f", segmenting {', '.join(structures[:-2] + last)}" if structures else ""
    return f"{' and '.join(counts)} on {modalities} scans{segmenting}."


def _numbers(
    sections: Sequence[Section], comparison: Comparison, warnings: Sequence[str]
) -> dict[str, Any]:
    against = {row.run.path: row.against_scratch for row in comparison.rows if len(row.runs) == 1}
    return {
        "format": "macl-report",
        "version": 1,
        "macl_version": macl.__version__,
        "verdict": verdict(comparison.rows),
        "caveats": list(warnings),
        "cross_validations": [
            {
                "title": row.title,
                "paths": [str(run.path) for run in row.runs],
                "dice_against_scratch": row.against_scratch,
                **_score_numbers(row.scores),
            }
            for row in comparison.rows
            if len(row.runs) > 1
        ],
        "runs": [_run_numbers(section, against.get(section.run.path)) for section in sections],
    }


def _run_numbers(section: Section, against_scratch: float | None) -> dict[str, Any]:
    run, record, scores = section.run, section.run.record, section.run.scores
    numbers: dict[str, Any] = {
        "title": section.title,
        "path": str(run.path),
        "kind": record.kind,
        "finished": record.finished,
        "start": run.start if record.is_segmenter else None,
        "labels": record.labels,
        "recipe": record.recipe,
        "dims": run.dims,
        "seed": record.seed,
        "steps": section.steps_done,
        "seconds": record.seconds,
        "cases": {
            "trained": len(record.cases),
            "unlabelled": len(record.unlabelled_cases),
            "validation": len(record.validation_cases),
            "test": len(record.test_cases),
        },
        "last_logged": {name: points[-1][1] for name, points in run.log.items()},
        "transfer": dict(section.transfer["counts"]) if section.transfer else None,
        "missing": [item.what for item in (*run.missing, *section.not_drawn)],
        "settings": record.settings,
    }
    if scores is None:
        return numbers
    return numbers | _score_numbers(scores) | {"dice_against_scratch": against_scratch}


def _score_numbers(scores: RunScores) -> dict[str, Any]:
    by_class = {
        name: {measure: _spread(scores.spread(measure, name)) for measure in MEASURES}
        for name in scores.classes
    }
    means = {measure: _spread(scores.mean(measure)) for measure in MEASURES}
    return {
        "convention": scores.convention,
        "unit": scores.unit,
        "scores": by_class | {"mean of classes": means},
        **{outcome: scores.count(outcome) for outcome in COUNTED_OUTCOMES},
    }


def _spread(spread: Spread) -> dict[str, float | int | None]:
    return {"mean": spread.mean, "standard_deviation": spread.deviation, "n": spread.n}
