"""What `macl run` chooses, from made-up scans and made-up speeds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from macl.config.settings import PrepareSettings
from macl.io.source import Source
from macl.preprocessing.fingerprint import CaseFingerprint, DatasetFingerprint
from macl.preprocessing.source import SourceScan
from macl.utils.errors import MaclError
from macl.workflows.run import budget as run_budget
from macl.workflows.run import planner as run_planner
from macl.workflows.run.budget import TrainingSteps, Workload, allot
from macl.workflows.run.choices import SplitChoice, choose_dims, choose_spacing, choose_split
from macl.workflows.run.facts import SourceFacts
from macl.workflows.run.plan import RunRequest
from macl.workflows.run.planner import choose_plan
from macl.workflows.run.speed import DesignSpeed, NetworkDesign

Triple = tuple[float, float, float]


def facts(
    labelled: int = 4,
    unlabelled: int = 40,
    size: tuple[int, int, int] = (10, 200, 160),
    spacing_mm: Triple | None = (8.0, 1.5, 1.5),
    **changes: Triple,
) -> SourceFacts:
    """Scans of so many people; `changes` are the spacings of single cases, such as `case3`."""
    cases = tuple(
        CaseFingerprint(
            name=f"case{number}",
            patient=f"person{number}",
            labelled=number < labelled,
            plane="axial",
            size=size,
            spacing_mm=changes.get(f"case{number}", spacing_mm),
        )
        for number in range(labelled + unlabelled)
    )
    fingerprint = DatasetFingerprint(
        reader="folder", modality="MR", channels=("image",), classes=("background", "heart"),
        cases=cases, refused={}, voxels_read=False,
    )  # fmt: skip
    source = Source(reader="folder", cases=(), channels=("image",))
    return SourceFacts(SourceScan(source, {}), fingerprint, seconds=1.0)


# ---------------------------------------------------------------- slices or volumes, who tests


@pytest.mark.parametrize(
    ("size", "spacing_mm", "has_gpu", "dims", "why"),
    [
        ((10, 200, 160), (8.0, 1.5, 1.5), True, 2, "has only 10"),
        ((40, 200, 160), (5.0, 1.0, 1.0), True, 2, "5.0 times as long"),
        ((160, 200, 160), None, True, 2, "how large its voxels are"),
        ((160, 200, 160), (1.0, 1.0, 1.0), False, 2, "want a GPU"),
        ((160, 200, 160), (1.5, 1.0, 1.0), True, 3, "nearly cubic"),
    ],
)
def test_volumes_need_nearly_cubic_voxels_and_a_gpu(
    size: tuple[int, int, int], spacing_mm: Triple | None, has_gpu: bool, dims: int, why: str
) -> None:
    chosen, reason = choose_dims(facts(size=size, spacing_mm=spacing_mm), has_gpu)
    assert chosen == dims
    assert why in reason


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "choice", "why"),
    [
        (0, 9, (0, "0"), "nobody has labels"),
        (1, 9, (0, "0"), "no test"),
        (2, 9, (2, "0"), "2 models"),
        (4, 9, (4, "0"), "4 models"),
        (9, 90, (5, "0"), "5 models"),
        (9, 3, (0, "20%"), "2 of 9"),
        (100, 900, (0, "20%"), "20 of 100"),
    ],
)
def test_few_labelled_people_are_cross_validated_if_others_can_pretrain(
    labelled: int, unlabelled: int, choice: tuple[int, str], why: str
) -> None:
    chosen, reason = choose_split(facts(labelled, unlabelled))
    assert tuple(chosen) == choice
    assert why in reason


# ---------------------------------------------------------------- spacing


def test_equal_scans_that_fit_a_patch_stay_as_they_are() -> None:
    assert choose_spacing(facts(size=(10, 90, 80)), 2, 64) is None


def test_unequal_scans_get_the_median_spacing() -> None:
    assert choose_spacing(facts(size=(10, 90, 80), case3=(8.0, 2.0, 2.0)), 2, 64) == 1.5


def test_a_scan_is_at_most_one_and_a_half_patches_long() -> None:
    # 200 voxels of 1.5 mm are 96 voxels of 3.125 mm.
    assert choose_spacing(facts(), 2, 64) == pytest.approx(3.12, abs=0.01)
    assert choose_spacing(facts(), 2, 192) is None
    cubic = facts(size=(200, 200, 200), spacing_mm=(1.0, 1.0, 1.0))
    assert choose_spacing(cubic, 3, 50) == (2.0, 2.0, 2.0)


def test_scans_without_spacing_are_not_resampled() -> None:
    assert choose_spacing(facts(spacing_mm=None), 2, 64) is None


# ---------------------------------------------------------------- steps

SPEED = DesignSpeed(
    pretrain=0.5, finetune=0.1, selftrain=0.2, window=0.001, parameters=500_000,
    pretrain_size=(64, 64), finetune_size=(64, 64),
)  # fmt: skip


def seconds(steps: TrainingSteps, models: int) -> float:
    one = steps.finetune * SPEED.finetune + steps.selftrain * SPEED.selftrain
    return steps.pretrain * SPEED.pretrain + models * one


@pytest.mark.parametrize("budget", [300.0, 900.0, 3000.0, 8000.0])
@pytest.mark.parametrize("models", [0, 1, 4])
def test_the_time_is_used_and_kept(budget: float, models: int) -> None:
    steps = allot(budget, SPEED, Workload(models, 3, may_selftrain=True, epoch_steps=1000))
    spent = seconds(steps, models)
    assert spent <= budget
    longest = (
        TrainingSteps(20_000, 6000, 6000) if models else TrainingSteps(run_budget.MOST_EPOCH_STEPS)
    )
    assert spent >= 0.9 * budget or steps == longest


def test_self_training_waits_for_time_that_lets_it_help() -> None:
    work = Workload(1, 3, may_selftrain=True, epoch_steps=1000)
    assert allot(150, SPEED, work).selftrain == 0
    enough = allot(300, SPEED, work)
    assert enough.finetune >= run_budget.LEAST_FINETUNING
    assert enough.selftrain >= run_budget.LEAST_SELFTRAINING
    everybody = Workload(1, 3, may_selftrain=False, epoch_steps=1000)
    assert allot(3000, SPEED, everybody).selftrain == 0


def test_no_time_gives_the_shortest_training() -> None:
    steps = allot(-100, SPEED, Workload(2, 3, may_selftrain=True, epoch_steps=10))
    assert (steps.pretrain, steps.finetune, steps.selftrain) == (20, 20, 0)


# ---------------------------------------------------------------- the whole plan


def choose(
    minutes: float, monkeypatch: pytest.MonkeyPatch, step_seconds: float = 0.02, **about: int
) -> tuple[run_planner.ChosenPlan, list[NetworkDesign]]:
    """The plan on a machine whose steps take as long as voxels and width say."""
    timed: list[NetworkDesign] = []

    def measure(design: NetworkDesign, device: str, seconds: float) -> DesignSpeed:
        timed.append(design)
        step = step_seconds * design.cost / (64 * 64 * 8)
        return DesignSpeed(
            step, step, 2 * step, step / 50, 500_000, design.pretrain_size, design.finetune_size
        )

    monkeypatch.setattr(run_planner, "expected_prepare_seconds", lambda *_: 10.0)
    request = RunRequest(scans=Path("scans"), minutes=minutes, device="cpu")
    chosen = choose_plan(request, facts(**about), time.perf_counter(), measure)
    return chosen, timed


@pytest.mark.parametrize("minutes", [10, 30, 60, 240])
@pytest.mark.parametrize("labelled", [0, 4])
def test_the_plan_fits_the_minutes(
    minutes: float, labelled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, _ = choose(minutes, monkeypatch, labelled=labelled, unlabelled=40)
    assert chosen.plan.seconds <= 60 * minutes
    could_be_longer = any("More time" in reason for reason in chosen.reasons)
    assert chosen.plan.seconds >= 0.8 * 60 * minutes or not could_be_longer
    assert bool(chosen.plan.finetune) == (labelled > 0)


def test_more_time_buys_a_larger_network_and_then_self_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans = [choose(minutes, monkeypatch, labelled=2)[0].plan for minutes in (1, 30, 600)]
    widths = [plan.width for plan in plans]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    assert plans[0].selftrain is None
    assert plans[-1].selftrain


def test_with_more_labels_the_time_goes_to_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, _ = choose(600, monkeypatch, labelled=5)
    assert chosen.plan.selftrain is None
    assert any(
        "4 people train with labels: with more than 3, longer" in reason
        for reason in chosen.reasons
    )


def test_people_are_counted_as_the_chosen_split_divides_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen, _ = choose(1, monkeypatch, step_seconds=0.1, labelled=5, unlabelled=20)
    assert (chosen.plan.folds, chosen.plan.test) == (0, "30%"), "2 test, 3 train"
    told = " ".join(chosen.reasons)
    assert "people train with labels: with more than" not in told
    assert "Self-training: none, since with fewer than 700 steps" in told


def test_only_the_people_who_test_are_segmented_again_and_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = run_budget.Budget(facts(100, 0), 60, 0.0, 0.0)
    _, timed = choose(60, monkeypatch, labelled=100, unlabelled=0)
    speed = DesignSpeed(0.1, 0.1, 0.2, 0.01, 10, (64, 64), (64, 64))
    nobody, fifth, everybody = (
        budget.expected(timed[-1], speed, SplitChoice(0, test)) for test in ("0", "20%", "100%")
    )
    for step in ("predict", "report"):
        less, some, all_of_them = (getattr(each, step) for each in (nobody, fifth, everybody))
        assert some - less == pytest.approx((all_of_them - less) / 5, abs=0.1)
        assert some > less


def test_a_slow_machine_gets_a_small_network_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, timed = choose(5, monkeypatch, step_seconds=5.0)
    assert chosen.plan.width == 8
    assert len({*timed}) == 1, "larger networks are not even timed"
    assert (chosen.plan.folds, chosen.plan.test) == (0, "30%"), "one model, trained longer"
    told = " ".join(chosen.reasons)
    assert "too short for the models of a cross-validation" in told
    assert "Too little time" in told
    assert "--minutes 20 buys" in told


@pytest.mark.parametrize(("minutes", "folds"), [(1, 0), (6, 3), (60, 5)])
def test_little_time_trains_fewer_models(
    minutes: float, folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = choose(minutes, monkeypatch, step_seconds=0.1, labelled=6, unlabelled=20)[0].plan
    assert plan.folds == folds
    assert plan.finetune
    assert plan.finetune.steps >= (200 if folds else 20)


def test_a_network_that_does_not_fit_into_memory_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_planner, "expected_prepare_seconds", lambda *_: 10.0)
    request = RunRequest(scans=Path("scans"), minutes=60, device="cpu")

    def measure(design: NetworkDesign, device: str, seconds: float) -> DesignSpeed | None:
        return SPEED if design.width == 8 else None

    assert choose_plan(request, facts(), time.perf_counter(), measure).plan.width == 8
    with pytest.raises(MaclError, match="Not even the smallest network fits"):
        choose_plan(request, facts(), time.perf_counter(), lambda *_: None)


def test_the_store_is_prepared_as_the_network_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, _ = choose(5, monkeypatch, step_seconds=5.0)
    assert chosen.plan.prepare == PrepareSettings(spacing_mm=3.12)
