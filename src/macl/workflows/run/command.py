"""Scans → masks and a page in one call: a plan that fits the time, then every stage in a row.

What is finished is kept, and training resumes, so that a killed run resumes when it is called
again.
"""

from __future__ import annotations

import time
from pathlib import Path

from macl.config.mistakes import validate
from macl.utils.errors import MaclError
from macl.utils.files import (
    ASIDE,
    AnyPath,
    clear_unfinished,
    file_lock,
    refuse_links,
    write_text,
)
from macl.utils.progress import say
from macl.utils.text import counted, format_duration, shown
from macl.workflows.run.facts import read_facts
from macl.workflows.run.plan import PLAN, STORE, RunPlan, RunRequest, plan_text, read_plan
from macl.workflows.run.planner import choose_plan, render_plan
from macl.workflows.run.steps import RunFolder
from macl.workflows.run.summary import RunResult

LOCK = ".lock"

MINUTES = 60.0
DEVICE = "auto"
"""What is taken where the user says nothing."""


def run(
    scans: AnyPath | None = None,
    out: AnyPath | None = None,
    *,
    reader: str | None = None,
    labels: AnyPath | None = None,
    patients: str | None = None,
    minutes: float = MINUTES,
    device: str = DEVICE,
    plan: AnyPath | None = None,
    dry_run: bool = False,
) -> RunResult | None:
    """Turn scans and a few labels into masks of all scans, scores and a page, in the given time.

    Everything is chosen from the data and the machine, and written to `out/plan.toml`. Called again
    with the same arguments, it resumes where it was stopped. Without labels it ends with
    pre-trained weights.

    Args:
        scans: a folder of scans.
        out: the folder to write; None: that of the plan.
        reader: the layout of the scans; None: recognised.
        labels: a folder of labels named like the scans, or a table; None: as the layout says.
        patients: who was scanned; see `prepare`.
        minutes: the budget for everything.
        device: "auto", "cpu", "cuda" or "mps".
        plan: a plan to follow, in place of scans, labels, patients, minutes and device.
        dry_run: only choose the plan and print it to stdout; nothing is written.

    Returns:
        What was made; None after a dry run.

    Raises:
        MaclError: the scans cannot be read, an argument is missing, or `out` holds something else.
    """
    started = time.perf_counter()
    folder = None if dry_run and out is None else _open_folder(out, plan)
    if plan is not None:
        if scans or reader or labels or patients:
            raise MaclError("The plan says where scans and labels are: change them there.")
        if (minutes, device) != (MINUTES, DEVICE):
            raise MaclError("The plan says minutes and device: change them there.")
        chosen, reasons = read_plan(Path(plan)), ()
        if folder and (folder / PLAN).is_file() and read_plan(folder / PLAN) != chosen:
            raise MaclError(f"{folder} already follows another plan: choose another --out.")
    elif scans is None:
        raise MaclError("There are no scans: name a folder of scans, or a plan with --plan.")
    else:
        values = {
            "scans": scans, "reader": reader, "labels": labels, "patients": patients,
            "minutes": minutes, "device": device,
        }  # fmt: skip
        request = validate(RunRequest, values)
        chosen, reasons = _find_or_choose(folder, request, started)
    say("\n".join((*reasons, "The plan:", render_plan(chosen))))
    if dry_run or folder is None:
        print(plan_text(chosen, reasons), end="")
        return None
    busy = f"Another `macl run` is at work in {folder}: wait until it ends."
    with file_lock(folder / LOCK, busy):
        clear_unfinished(folder)
        if not (folder / PLAN).is_file():
            write_text(folder / PLAN, plan_text(chosen, reasons))
        result = RunFolder(folder, chosen).make()
    say(f"It took {format_duration(time.perf_counter() - started)}.")
    return result


# ---------------------------------------------------------------- the plan


def _open_folder(out: AnyPath | None, plan: AnyPath | None) -> Path:
    """The folder to write, which holds nothing yet, or a run."""
    if out is None and plan is None:
        raise MaclError("There is no folder to write: name one with --out.")
    # Runs remember where their store and start lay, so that it must not depend on where one stands.
    folder = Path(out).absolute() if out is not None else Path(plan or "").absolute().parent
    if folder.exists() and not folder.is_dir():
        raise MaclError(f"--out {folder} is a file: choose a folder.")
    refuse_links(folder)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    begun = PLAN in names and (out is not None or STORE in names)
    others = {name for name in names if name not in (LOCK, PLAN) and not name.startswith(ASIDE)}
    if others - {Path(plan or "").name} and not begun:
        raise MaclError(
            f"{folder} already holds something that is not a run of macl: choose another --out."
        )
    return folder


def _find_or_choose(
    folder: Path | None, request: RunRequest, started: float
) -> tuple[RunPlan, tuple[str, ...]]:
    """The folder's plan, or a new one, with its reasons."""
    request = request.with_absolute_paths(Path.cwd())
    if folder and folder.resolve().is_relative_to(request.scans.resolve()):
        raise MaclError(f"--out {folder} lies within the scans: choose a folder outside.")
    if folder and (folder / PLAN).is_file():
        plan = read_plan(folder / PLAN)
        if plan.request != request:
            differs = [
                f"{name} is {shown(value)} there, not {shown(getattr(request, name))}"
                for name, value in plan.request
                if value != getattr(request, name)
            ]
            raise MaclError(
                f"{folder} holds a run with another plan ({', '.join(differs)}): choose another "
                f"--out, or continue it with `macl run --plan {folder / PLAN}`."
            )
        return plan, (f"Continuing with the plan in {folder / PLAN}.",)
    facts = read_facts(request)
    people = len(facts.labelled_people | facts.unlabelled_people)
    say(
        f"{request.scans}: {counted(len(facts.fingerprint.cases), 'scan')} of "
        f"{counted(people, 'person', 'people')}; {counted(facts.labelled, 'scan')} of "
        f"{counted(len(facts.labelled_people), 'person', 'people')} with labels. Read as "
        f"{facts.fingerprint.reader}."
    )
    say("Timing a few steps on this machine …")
    chosen = choose_plan(request, facts, started)
    store, runs_ = chosen.store_bytes / 2**20, chosen.run_bytes / 2**20
    disk = f"Disk: at most {store:,.0f} MiB for the store and {runs_:,.0f} MiB for the runs."
    return chosen.plan, (*chosen.reasons, disk)
