"""The steps of `macl run`, from scans to a page; each keeps what is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from macl.data.splits import Split, write_split
from macl.data.store import Store
from macl.engine.run import TrainingKeywords
from macl.records import runs
from macl.records.scores import ScoreRow, read_rows, summarise, write_rows
from macl.stages import split as splitting
from macl.stages.evaluate import evaluate
from macl.stages.finetune import finetune
from macl.stages.predict import predict
from macl.stages.prepare import prepare
from macl.stages.pretrain import pretrain
from macl.stages.report import report
from macl.stages.selftrain import selftrain
from macl.utils.errors import MaclError
from macl.utils.files import write_json
from macl.utils.progress import quietly, say
from macl.workflows.benchmark.cells import has_decoder
from macl.workflows.run.plan import PLAN, STORE, RunPlan, TrainingPlan
from macl.workflows.run.summary import RunResult, what_scores_allow

EVERYBODY = "100%"
"""The label budget: everybody who does not test."""


@dataclass(frozen=True)
class RunFolder:
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
        if self.final:
            runs.write_models(self.out, self.final)
        return RunResult(
            folder=self.out,
            plan=self.plan,
            models=tuple(self.final),
            pretrained=self.pretrained,
            masks=self.out / "masks" if self.final else None,
            page=self.out / "report.html",
            scores=tuple(self.scores()),
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

    def _options(self, training: TrainingPlan) -> TrainingKeywords:
        plan = self.plan
        return {
            "recipe": training.recipe,
            "overrides": plan.overrides(training),
            "device": plan.device,
            "seed": plan.seed,
            "resume": True,
        }

    def _pretrain(self) -> None:
        plan = self.plan
        name = "pretraining.json" if plan.folds else "labels.json"
        pretrain(
            self.store,
            self.pretrained,
            split=self.out / "splits" / name if plan.tests else None,
            **self._options(plan.pretrain),
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
                **self._options(plan.finetune),
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
                **self._options(plan.selftrain),
            )

    def _predict(self) -> None:
        device = self.plan.device
        predict([*self.final, self.store], self.out / "masks", cases="all", device=device)
        if self.plan.tests:
            say("Segmenting the test people again, with models that never saw them, to score them.")
            with quietly():
                for run, _ in (*self.selftrained, *self.finetuned):
                    predict([run, self.store], run / runs.PREDICTIONS, device=device)

    def _evaluate(self) -> None:
        for run, _ in (*self.selftrained, *self.finetuned):
            evaluate(run / runs.PREDICTIONS, self.store, run / runs.SCORES)
        rows = self.scores()
        write_rows(self.out / "scores.csv", rows)
        write_json(self.out / "scores.summary.json", summarise(rows, "strict"))

    def scores(self) -> list[ScoreRow]:
        """The scores of the final models' test cases."""
        if not self.plan.tests:
            return []
        rows = [row for run in self.final for row in read_rows(run / runs.SCORES)]
        return sorted(rows, key=lambda row: row.case)

    def _report(self) -> None:
        reported = [run for run, _ in (*self.selftrained, *self.finetuned)]
        notes = []
        if self.plan.folds:
            notes.append(
                f"Cross-validation: every labelled person is tested by the one of "
                f"{self.plan.folds} models that never saw them."
            )
        if scores := self.scores():
            notes.append(what_scores_allow(scores, self.plan, Store.open(self.store)))
        report([*reported, self.pretrained], self.out / "report.html", notes=notes)


def _count(models: Sequence[object]) -> str:
    return f"{len(models)} models" if len(models) > 1 else "a model"
