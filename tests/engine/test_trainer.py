"""The training loop: what it logs and keeps, where it stops, what it says if memory runs out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fakes.loading import make_loader
from fakes.toy_store import write_toy_store
from macl.config.settings import TrainingSettings
from macl.data.batch import Batch
from macl.data.patch_cache import PatchCache
from macl.engine import trainer
from macl.engine.optimisation import learning_rate
from macl.engine.task import StepOutput, Task
from macl.engine.trainer import Validation, fit, make_fabric
from macl.utils import checkpoint
from macl.utils.errors import MaclError


class Line(Task):
    """Fits a slice's mean to its position; small enough to follow by hand."""

    def __init__(self, explode_at: int | None = None, at_most: int | None = None) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.norm = nn.BatchNorm1d(1)
        self.explode_at, self.at_most = explode_at, at_most
        self.sizes: list[int] = []
        self.autocast: set[bool] = set()

    def step(self, batch: Batch) -> StepOutput:
        self.sizes.append(len(batch.images))
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        if self.at_most and len(batch.images) > self.at_most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        target = batch.images.mean((1, 2, 3))
        height = batch.positions[:, 0]
        error = self.slope * height + self.norm(height[:, None])[:, 0] - target
        loss = error.square().mean()
        if self.explode_at is not None and batch.rng.step + 1 >= self.explode_at:
            loss = loss * math.inf
        return StepOutput(loss, {"error": error.detach().abs().mean()})


SETTINGS = TrainingSettings(
    epochs=4, batch_size=6, size=32, learning_rate=0.1, log_every_steps=5, checkpoint_every_steps=7
)  # fmt: skip
STEPS = 4 * 4


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> PatchCache:
    store = write_toy_store(tmp_path_factory.mktemp("toy") / "store", patients=4, slices=6, side=32)
    return PatchCache(store, [case.name for case in store.index.cases], True, torch.device("cpu"))


def train(
    bank: PatchCache, run: Path, task: Task, validation: Validation | None = None, **changes: Any
):
    settings = SETTINGS.model_copy(update=changes)
    batches = make_loader(bank, settings.batch_size, (32, 32), seed=0)
    run.mkdir(exist_ok=True)
    fabric = make_fabric("cpu", settings.precision)
    return fit(task, batches, settings, run, fabric, validation=validation)


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_log_holds_every_step_once(bank: PatchCache, tmp_path: Path) -> None:
    train(bank, tmp_path, Line(), warmup_share=0.125)
    lines = logged(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for number, line in enumerate(lines):
        assert line["epoch"] == (number + 1) / 4
        expected = learning_rate(SETTINGS.model_copy(update={"warmup_share": 0.125}), number, STEPS)
        assert line["learning_rate"] == expected
        assert {"loss", "error"} <= set(line)
    assert [line["step"] for line in lines if "patches_per_second" in line] == [
        5,
        7,
        10,
        14,
        15,
        16,
    ]


def test_the_optimiser_takes_the_logged_rate(bank: PatchCache, tmp_path: Path) -> None:
    """Plain gradient descent followed by hand."""
    tensors, *_ = train(bank, tmp_path, Line(), momentum=0.0, weight_decay=0.0)
    task = Line()
    batches = make_loader(bank, 6, (32, 32), seed=0)
    for step, batch in enumerate(batches.between(0, STEPS)):
        gradients = torch.autograd.grad(task.step(batch).loss, list(task.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(task.parameters(), gradients, strict=True):
                parameter -= learning_rate(SETTINGS, step, STEPS) * gradient
    for name, tensor in task.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor)


@pytest.mark.parametrize("decay", [None, 0.6])
def test_the_kept_weights_are_the_last_or_their_average(
    bank: PatchCache, tmp_path: Path, decay: float | None
) -> None:
    task = Line()
    history: list[float] = []
    hook = task.norm.register_forward_pre_hook(lambda *_: history.append(task.slope.item()))
    tensors, *_ = train(bank, tmp_path, task, ema_decay=decay)
    hook.remove()
    history.append(task.slope.item())
    average = history[0]
    for number, value in enumerate(history[1:], start=1):
        kept = min(decay or 0.0, (1 + number) / (10 + number))
        average = kept * average + (1 - kept) * value
    assert tensors["slope"].item() == pytest.approx(average, rel=1e-5)
    if decay:
        assert tensors["slope"].item() != pytest.approx(history[-1], rel=1e-5)


def test_gradients_are_clipped(bank: PatchCache, tmp_path: Path) -> None:
    most = 1e-3
    tensors, *_ = train(
        bank,
        tmp_path,
        Line(),
        gradient_clip=most,
        momentum=0.0,
        weight_decay=0.0,
        learning_rate=0.1,
    )
    moved = [tensors[name] - parameter.detach() for name, parameter in Line().named_parameters()]
    distance = torch.cat([difference.flatten() for difference in moved]).norm().item()
    path = most * sum(line["learning_rate"] for line in logged(tmp_path))
    assert 0.9 * path < distance <= path * (1 + 1e-4)


@pytest.mark.parametrize("step", [1, 8, STEPS])
def test_a_loss_that_is_not_finite_stops_the_run(
    bank: PatchCache, tmp_path: Path, step: int
) -> None:
    with pytest.raises(
        MaclError, match=rf"The loss became (inf|nan) at step {step}: .*training\.learning_rate"
    ):
        train(bank, tmp_path, Line(explode_at=step), log_every_steps=100)
    assert all(math.isfinite(line["loss"]) for line in logged(tmp_path))
    assert not (tmp_path / "weights.safetensors").exists()
    if step > 7:
        assert [line["step"] for line in logged(tmp_path)] == list(range(1, 15 if step > 14 else 8))


@pytest.mark.parametrize(
    ("at_most", "advice"), [(5, "3 would.*training.batch_size=3"), (2, "not even 2|training.size")]
)
def test_out_of_memory_is_answered_with_a_size_that_fits(
    bank: PatchCache, tmp_path: Path, at_most: int, advice: str
) -> None:
    task = Line(at_most=at_most)
    with pytest.raises(
        MaclError, match=f"A batch of 6 patches of 32 × 32 does not fit.*({advice})"
    ):
        train(bank, tmp_path, task)
    assert task.sizes == [6, 3]


def test_out_of_memory_halves_until_it_fits(bank: PatchCache, tmp_path: Path) -> None:
    task = Line(at_most=3)
    with pytest.raises(
        MaclError, match=r"A batch of 24 patches.*: 3 would, so add --set training\.batch_size=3"
    ):
        train(bank, tmp_path, task, batch_size=24)
    assert task.sizes == [24, 12, 6, 3]


def test_other_errors_are_not_taken_for_memory(bank: PatchCache, tmp_path: Path) -> None:
    class Broken(Line):
        def step(self, batch: Batch) -> StepOutput:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(bank, tmp_path, Broken())


def scores(values: list[float]) -> Iterator[float]:
    yield from values
    while True:
        yield 0.0


@pytest.mark.parametrize("decay", [None, 0.6])
def test_validation_keeps_the_best_weights(
    bank: PatchCache, tmp_path: Path, decay: float | None
) -> None:
    task, seen = Line(), []
    given = scores([0.1, 0.2, 0.9, 0.3, 0.9])

    def score() -> float:
        assert not task.training, "in eval mode"
        seen.append({name: tensor.clone() for name, tensor in task.state_dict().items()})
        return next(given)

    validation = Validation(score)
    tensors, *_ = train(bank, tmp_path, task, validation, ema_decay=decay)
    assert len(seen) == STEPS, "a short run is validated after every step"
    expected = [0.1, 0.2, 0.9, 0.3, 0.9, *[0.0] * 11]
    assert [line["validation_score"] for line in logged(tmp_path)] == expected
    assert validation.best_score == 0.9
    for name, tensor in seen[2].items():
        assert torch.equal(tensors[name], tensor), "the first of the best, as it was scored"
    assert task.training
    if decay:
        assert seen[2]["slope"] != seen[3]["slope"]


def test_stopped_and_resumed_is_the_same(bank: PatchCache, tmp_path: Path) -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    class Stopping(Line):
        stop_at = 13

        def step(self, batch: Batch) -> StepOutput:
            if batch.rng.step == self.stop_at:
                raise Stopped
            return super().step(batch)

    changes: dict[str, Any] = {
        "optimiser": "adamw",
        "ema_decay": 0.7,
        "gradient_clip": 1.0,
        "log_every_steps": 3,
    }
    best = [0.1, 0.5, 0.7, 0.2, 0.3, 0.4, 0.1]
    whole, *_ = train(
        bank,
        tmp_path / "whole",
        Line(),
        Validation(lambda given=scores(best): next(given)),
        **changes,
    )
    with pytest.raises(Stopped):
        train(
            bank,
            tmp_path / "run",
            Stopping(),
            Validation(lambda given=scores(best): next(given)),
            **changes,
        )
    assert [line["step"] for line in logged(tmp_path / "run")] == [*range(1, 13)]
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 13, "lo')
    resumed, *_ = train(bank, tmp_path / "run", Line(), Validation(lambda: 0.0), **changes)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    untimed = [
        [
            {k: v for k, v in line.items() if k != "patches_per_second"}
            for line in logged(tmp_path / run)
        ]
        for run in ("whole", "run")
    ]
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, 5), (600.0, None)])
def test_a_checkpoint_is_also_written_as_time_passes(
    seconds: float, saved: int | None, bank: PatchCache, tmp_path: Path, monkeypatch
) -> None:
    class Stopping(Line):
        def step(self, batch: Batch) -> StepOutput:
            if batch.rng.step == 5:
                raise KeyboardInterrupt
            return super().step(batch)

    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_CHECKPOINTS", seconds)
    with pytest.raises(KeyboardInterrupt):
        train(bank, tmp_path, Stopping())
    state = tmp_path / "state.safetensors"
    assert state.exists() == (saved is not None)
    if saved:
        assert checkpoint.read(state).about["step"] == saved
        assert len(logged(tmp_path)) == saved


def test_a_finished_state_is_not_trained_further(bank: PatchCache, tmp_path: Path) -> None:
    first, *_ = train(bank, tmp_path, Line())
    task = Line()
    again, *_ = train(bank, tmp_path, task)
    assert task.sizes == []
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("precision", "has_bf16", "autocast"),
    [("auto", False, False), ("auto", True, True), ("fp32", True, False), ("bf16", False, True)],
)
def test_the_step_runs_in_its_precision_and_the_weights_stay_in_fp32(
    bank: PatchCache, tmp_path: Path, monkeypatch, precision: str, has_bf16: bool, autocast: bool
) -> None:
    monkeypatch.setattr("macl.engine.precision.has_bf16", lambda device: has_bf16)
    task = Line()
    tensors, *_ = train(bank, tmp_path, task, precision=precision)
    assert task.autocast == {autocast}
    assert tensors["slope"].dtype == torch.float32


def test_a_device_that_is_not_there() -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(MaclError, match=f"finds no {missing} device.*--device cpu"):
        make_fabric(missing, "auto")


def test_each_log_entry_is_reported(bank: PatchCache, tmp_path: Path) -> None:
    logged_losses: list[tuple[int, float]] = []
    batches = make_loader(bank, 6, (32, 32), seed=0)
    fit(
        Line(), batches, SETTINGS, tmp_path, make_fabric("cpu", "fp32"),
        on_log=lambda step, values: logged_losses.append((step, values["loss"])),
    )  # fmt: skip
    losses = {line["step"]: line["loss"] for line in logged(tmp_path)}
    assert logged_losses == [(step, losses[step]) for step in (5, 7, 10, 14, 15, 16)]
