"""Scans → masks and a page in one call: a plan that fits the time, then every stage in a row.

What is finished is kept: each step skips it, and training resumes, so that a killed run goes on
when it is called again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from macl.config import validate
from macl.data.splits import Split, write_split
from macl.data.store import INDEX, Store
from macl.records import runs
from macl.records.scores import ScoreRow, read_rows, render, summarise, write_rows
from macl.stages import split as splitting
from macl.stages.evaluate import evaluate
from macl.stages.finetune import finetune
from macl.stages.predict import predict
from macl.stages.prepare import prepare
from macl.stages.pretrain import pretrain
from macl.stages.report import report
from macl.stages.selftrain import selftrain
from macl.utils.errors import MaclError
from macl.utils.files import (
    ASIDE,
    AnyPath,
    clear_unfinished,
    file_lock,
    refuse_links,
    write_json,
    write_text,
)
from macl.utils.progress import say
from macl.utils.text import format_duration
from macl.workflows.cells import has_decoder
from macl.workflows.run_budget import choose_plan, render_plan
from macl.workflows.run_facts import read_facts
from macl.workflows.run_plan import RunPlan, RunRequest, plan_text, read_plan

PLAN = "plan.toml"
STORE = "store"
LOCK = ".lock"
EVERYBODY = "100%"
"""The label budget: everybody who does not test."""

ROUGH = 20
"""Scores of fewer people are called a rough idea."""


@dataclass(frozen=True)
class RunResult:
    """What a run has made.

    Attributes:
        models: folders of the segmenters, whose probabilities are averaged; none without labels.
        pretrained: folder of the pre-training run.
        masks: folder of the masks of all scans; None without labels.
        page: the report.
        scores: one row per tested scan and class.
    """

    models: tuple[Path, ...]
    pretrained: Path
    masks: Path | None
    page: Path
    scores: tuple[ScoreRow, ...]


def run(
    scans: AnyPath | None = None,
    out: AnyPath | None = None,
    *,
    reader: str | None = None,
    labels: AnyPath | None = None,
    patients: str | None = None,
    minutes: float = 60.0,
    device: str = "auto",
    plan: AnyPath | None = None,
    dry_run: bool = False,
) -> RunResult | None:
    """Turn scans and a few labels into masks of all scans, scores and a page, in the given time.

    Everything is chosen from the data and the machine, and written to `out/plan.toml`. Called again
    with the same arguments, it goes on where it was stopped. Without labels it ends with
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
        dry_run: only choose and print the plan; nothing is written.

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
        result = _RunFolder(folder, chosen).make()
    print(_summary(result, chosen, folder))
    say(f"It took {format_duration(time.perf_counter() - started)}.")
    return result


# ---------------------------------------------------------------- the plan


def _open_folder(out: AnyPath | None, plan: AnyPath | None) -> Path:
    """The folder to write, which holds nothing yet, or a run."""
    if out is None and plan is None:
        raise MaclError("There is no folder to write: name one with --out.")
    # Runs remember where their start lay, so that it must be called the same every time.
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
            raise MaclError(
                f"{folder} holds a run with another plan: choose another --out, or go on with "
                f"`macl run --plan {folder / PLAN}`."
            )
        return plan, (f"Going on with the plan in {folder / PLAN}.",)
    facts = read_facts(request)
    people = len(facts.labelled_people | facts.unlabelled_people)
    say(
        f"{request.scans}: {len(facts.fingerprint.cases)} scans of {people} people, "
        f"{facts.labelled} of them with labels; read as {facts.fingerprint.reader}."
    )
    say("Timing a few steps on this machine …")
    chosen = choose_plan(request, facts, started)
    store, runs_ = chosen.store_bytes / 2**20, chosen.run_bytes / 2**20
    disk = f"Disk: at most {store:,.0f} MiB for the store and {runs_:,.0f} MiB for the runs."
    return chosen.plan, (*chosen.reasons, disk)


# ---------------------------------------------------------------- the steps


@dataclass(frozen=True)
class _RunFolder:
    """The folder of a run and the steps that fill it."""

    out: Path
    plan: RunPlan

    @property
    def store(self) -> Path:
        return self.out / STORE

    @property
    def pretrained(self) -> Path:
        return self.out / "runs" / "pretraining"

    def models(self, stage: str) -> list[tuple[Path, Path]]:
        """The run of every model, and its split."""
        if not self.plan.folds:
            return [(self.out / "runs" / stage, self.out / "splits" / "labels.json")]
        return [
            (
                self.out / "runs" / f"{stage}-fold{number}",
                self.out / "splits" / f"labels-fold{number}.json",
            )
            for number in range(1, self.plan.folds + 1)
        ]

    @property
    def finetuned(self) -> list[tuple[Path, Path]]:
        return self.models("finetuned") if self.plan.finetune else []

    @property
    def selftrained(self) -> list[tuple[Path, Path]]:
        return self.models("selftrained") if self.plan.selftrain else []

    @property
    def final(self) -> list[Path]:
        """The models that segment."""
        return [run for run, _ in self.selftrained or self.finetuned]

    def make(self) -> RunResult:
        """Do what is not done yet."""
        steps: list[tuple[str, Callable[[], None]]] = [("prepare", self._prepare)]
        if self.plan.finetune:
            steps.append(("split", self._split))
        steps.append(("pre-train (no labels)", self._pretrain))
        if self.finetuned:
            steps.append((f"fine-tune {_count(self.finetuned)}", self._finetune))
        if self.selftrained:
            steps.append((f"self-train {_count(self.selftrained)}", self._selftrain))
        if self.finetuned:
            steps.append(("predict every scan", self._predict))
        if self.plan.tests:
            steps.append(("evaluate", self._evaluate))
        steps.append(("report", self._report))
        for number, (what, step) in enumerate(steps, start=1):
            say(f"\n{number}/{len(steps)} {what}")
            step()
        return RunResult(
            models=tuple(self.final),
            pretrained=self.pretrained,
            masks=self.out / "masks" if self.final else None,
            page=self.out / "report.html",
            scores=tuple(self._scores()),
        )

    def _prepare(self) -> None:
        plan = self.plan
        prepare(
            plan.scans,
            self.store,
            reader=plan.reader,
            settings=plan.prepare,
            patients=plan.patients,
            labels=plan.labels,
        )

    def _split(self) -> None:
        plan, folder = self.plan, self.out / "splits"
        labelled = splitting.structures(Store.open(self.store), plan.group)
        if len(labelled) < max(plan.folds, 2 if plan.tests else 1):
            raise MaclError(
                f"Only {len(labelled)} people have labels that can be used, too few for the plan: "
                f"see what was refused above, or change folds and test in a copy of "
                f"{self.out / PLAN}."
            )
        options: splitting.SplitKeywords = {
            "budgets": EVERYBODY,
            "group": plan.group,
            "seed": plan.seed,
        }
        if plan.folds:
            splitting.folds(self.store, folder / "labels.json", count=plan.folds, **options)
            apart = Split(name="pretraining", group=plan.group, test=tuple(labelled), budgets={})
            write_split(folder / "pretraining.json", apart)
        elif plan.tests:
            splitting.split(self.store, folder / "labels.json", test=plan.test, **options)
        else:
            budgets = {EVERYBODY: tuple(labelled)}
            everybody = Split(name="labels", group=plan.group, test=(), budgets=budgets)
            write_split(folder / "labels.json", everybody)

    def _pretrain(self) -> None:
        plan = self.plan
        name = "pretraining.json" if plan.folds else "labels.json"
        pretrain(
            self.store,
            self.pretrained,
            split=self.out / "splits" / name if plan.tests else None,
            recipe=plan.pretrain.recipe,
            overrides=plan.overrides(plan.pretrain),
            device=plan.device,
            seed=plan.seed,
            resume=True,
        )

    def _finetune(self) -> None:
        plan = self.plan
        assert plan.finetune
        for run, split in self.finetuned:
            finetune(
                self.store,
                run,
                init=self.pretrained,
                split=split,
                labels=EVERYBODY,
                encoder_only=not has_decoder(self.pretrained),
                recipe=plan.finetune.recipe,
                overrides=plan.overrides(plan.finetune),
                device=plan.device,
                seed=plan.seed,
                resume=True,
            )

    def _selftrain(self) -> None:
        plan = self.plan
        assert plan.selftrain
        for (run, split), (start, _) in zip(self.selftrained, self.finetuned, strict=True):
            selftrain(
                self.store,
                run,
                init=start,
                split=split,
                labels=EVERYBODY,
                recipe=plan.selftrain.recipe,
                overrides=plan.overrides(plan.selftrain),
                device=plan.device,
                seed=plan.seed,
                resume=True,
            )

    def _predict(self) -> None:
        device = self.plan.device
        predict([*self.final, self.store], self.out / "masks", cases="all", device=device)
        if self.plan.tests:
            for run, _ in (*self.selftrained, *self.finetuned):
                predict([run, self.store], run / runs.PREDICTIONS, device=device)

    def _evaluate(self) -> None:
        with redirect_stdout(sys.stderr):
            for run, _ in (*self.selftrained, *self.finetuned):
                evaluate(run / runs.PREDICTIONS, self.store, run / runs.SCORES)
        rows = self._scores()
        write_rows(self.out / "scores.csv", rows)
        write_json(self.out / "scores.summary.json", summarise(rows, "strict"))

    def _scores(self) -> list[ScoreRow]:
        """The scores of the final models' test cases."""
        if not self.plan.tests:
            return []
        rows = [row for run in self.final for row in read_rows(run / runs.SCORES)]
        return sorted(rows, key=lambda row: row.case)

    def _report(self) -> None:
        reported = [run for run, _ in (*self.selftrained, *self.finetuned)]
        report([*reported, self.pretrained], self.out / "report.html", notes=self._notes())

    def _notes(self) -> Sequence[str]:
        if self.plan.folds:
            return [
                f"Cross-validation: every labelled person is tested by the one of "
                f"{self.plan.folds} models that never saw them."
            ]
        return []


def _count(models: Sequence[object]) -> str:
    return f"{len(models)} models" if len(models) > 1 else "a model"


# ---------------------------------------------------------------- the end


def _summary(result: RunResult, plan: RunPlan, out: Path) -> str:
    """What was made, where, and what the numbers allow."""
    lines = []
    if result.scores:
        lines += [render(summarise(result.scores, "strict")), _what_scores_allow(result, plan, out)]
    elif result.models:
        lines.append("There are no scores: nobody's labels were kept to test.")
    if result.masks:
        masks = len([*result.masks.glob("*.nii*")])
        models = f", {len(result.models)} models averaged" if len(result.models) > 1 else ""
        lines.append(f"Masks    {result.masks} ({masks} scans{models})")
        if plan.folds:
            every_fold = result.models[0].name.removesuffix("1") + "*"
            lines.append(
                "         of labelled people, those by a model that never saw them: "
                f"{out / 'runs' / every_fold / runs.PREDICTIONS}"
            )
        named = " ".join(map(str, result.models))
        lines.append(f"New scan macl predict {named} SCAN --out MASKS")
    if refused := len(Store.open(out / STORE).index.refused):
        lines.append(f"Refused  {refused} scans, with the reasons in {out / STORE / INDEX}")
    if (names := out / f"{STORE}.private.json").is_file():
        lines.append(f"Names    {names} says which scan a hashed name means: keep it to yourself")
    lines += [f"Weights  {result.pretrained}, pre-trained without labels"]
    lines += [f"Page     {result.page}", f"Plan     {out / PLAN}"]
    return "\n".join(lines)


def _what_scores_allow(result: RunResult, plan: RunPlan, out: Path) -> str:
    patients = {case.name: case.patient for case in Store.open(out / STORE).index.cases}
    by_person: dict[str, list[float]] = {}
    for row in result.scores:
        if row.dice == row.dice:
            by_person.setdefault(patients[row.case], []).append(row.dice)
    means = [100 * fmean(values) for values in by_person.values()]
    if not means:
        return "No structure is in the test, so its scores say nothing."
    people = "1 person" if len(means) == 1 else f"{len(means)} people"
    whom = "each by a model that never saw them" if plan.folds else "whom training never saw"
    rough = ": so few that it is a rough idea" if len(means) < ROUGH else ""
    return (
        f"Mean Dice {fmean(means):.1f} % ({min(means):.1f} to {max(means):.1f}) on {people}, "
        f"{whom}; one seed{rough}."
    )
