"""The fast path computes what the plain one does: compiled steps, memory format, fused optimisers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from macl.config import FinetuneSettings, TrainingSettings, validate
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.engine import compiling as acceleration
from macl.engine.compiling import build_optimiser_for, compile_mode, compiled, to_device_layout
from macl.engine.optimisation import load_optimiser_tensors, optimiser_tensors
from macl.engine.task import StepOutput
from macl.plugins import find, names
from macl.tasks.segmentation import SegmentationTask, build_segmenter

SIDE, SLICES, WIDTH = 64, 6, 2
SMALL = {"queue": 8, "prototypes": 8, "hidden": 16, "projection": 8, "small_crops": 1, "discriminator_width": 2}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def batch(step: int, done: float) -> Batch:
    rng = SampleRng(0, torch.tensor(step), torch.arange(SLICES))
    images, neighbours = (rng.normal(name, (1, SIDE, SIDE)) for name in ("image", "neighbour"))
    labels = rng.uniform("label", (SIDE, SIDE), 0, 3).long()
    return Batch(images, rng.uniform("position"), rng, labels, neighbours, done)


def pretraining(method: str) -> torch.nn.Module:
    plugin, unet = find("methods", method), find("backbones", "unet")
    own = {name: value for name, value in SMALL.items() if name in plugin.Settings.model_fields}
    settings = validate(plugin.Settings, own)
    torch.manual_seed(0)
    return plugin.build(settings, unet.build(unet.Settings(width=WIDTH), 1, plugin.decoder_blocks(settings)))  # pyright: ignore


def finetuning() -> torch.nn.Module:
    torch.manual_seed(0)
    settings = FinetuneSettings(backbone_settings={"width": WIDTH})
    segmenter = build_segmenter(settings, find("backbones", "unet"), channels=1, classes=3)
    return SegmentationTask(segmenter, settings, ("row", "column"))


@pytest.mark.parametrize("name", [*names("methods"), "fine-tuning"])
def test_a_compiled_step_is_the_step_and_is_not_compiled_again(name: str) -> None:
    task = finetuning() if name == "fine-tuning" else pretraining(name)
    plain = copy.deepcopy(task)
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounter()
    step = torch.compile(task.step, backend=counter)
    frames = []
    for number in range(4):
        done = 0.8 + number / 100
        ours, theirs = step(batch(number, done)), plain.step(batch(number, done))
        assert torch.equal(ours.loss, theirs.loss)
        frames.append(counter.frame_count)
    # The second step teaches the compiler that the run's progress is not a constant; after it nothing is new.
    assert frames[1] == frames[-1] <= 6
    reasons = [reason for reason in counters["graph_break"] if "torch.compiler.disable" not in reason]
    assert not reasons


@pytest.mark.parametrize("pass_that_fails", ["fw_compiler", "bw_compiler"])
def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch, capsys, pass_that_fails) -> None:
    task = finetuning()
    expected = copy.deepcopy(task).step(batch(0, 0.0)).loss

    def broken(graph, inputs):
        raise RuntimeError("no compiler")

    compilers = {"fw_compiler": lambda graph, inputs: graph, pass_that_fails: broken}
    compile_with = torch.compile
    backend = aot_autograd(**compilers)
    torch._dynamo.reset()
    monkeypatch.setattr(acceleration.torch, "compile", lambda step, mode: compile_with(step, backend=backend))
    outcome = compiled(task.step, "default")(batch(0, 0.0))
    outcome.loss.backward()
    assert torch.equal(outcome.loss, expected)
    assert "runs uncompiled" in capsys.readouterr().err


def test_what_a_recorded_step_gave_outlives_the_next(monkeypatch) -> None:
    """A CUDA graph writes every replay's results to the same place; so does this step."""
    place = torch.zeros(())

    def overwriting(step, mode):
        return lambda batch: StepOutput(place + 0, {"part": place.fill_(batch.done)})

    monkeypatch.setattr(acceleration.torch, "compile", overwriting)
    step = compiled(finetuning().step, "reduce-overhead")
    parts = [step(batch(number, float(number))).parts["part"] for number in range(3)]
    assert [value.item() for value in parts] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("setting", "device", "pixels", "expected"),
    [
        ("off", GPU, 1e12, None),
        ("auto", CPU, 1e12, None),
        ("auto", GPU, 1e9, None),
        ("auto", GPU, 1e12, "default"),
        ("reduce-overhead", GPU, 1e9, "reduce-overhead"),
        ("default", CPU, 1e9, "default"),
    ],
)
def test_long_runs_on_a_gpu_are_compiled(monkeypatch, setting, device, pixels, expected) -> None:
    monkeypatch.setattr(acceleration, "_can_compile", lambda: True)
    assert compile_mode(TrainingSettings(compile=setting), device, pixels) == expected


def test_without_a_compiler_nothing_is_compiled(monkeypatch) -> None:
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: None)
    assert compile_mode(TrainingSettings(), GPU, 1e12) is None


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_fused_moments_come_back_in_the_weights_own_memory_format(name: str) -> None:
    """A fused kernel walks weights and moments side by side, and would pair the wrong ones."""

    def trained(task, optimiser, steps):
        for number in steps:
            task.step(batch(number, 0.0)).loss.backward()
            optimiser.step()
            optimiser.zero_grad()

    def made():
        task = finetuning()
        to_device_layout(task, CPU)
        return task, build_optimiser_for(TrainingSettings(optimiser=name, learning_rate=0.01), task, CPU, scaled=False)

    task, optimiser = made()
    trained(task, optimiser, range(2))
    saved = {name: tensor.contiguous().clone() for name, tensor in optimiser_tensors(optimiser).items()}
    weights = copy.deepcopy(task.state_dict())
    trained(task, optimiser, range(2, 4))
    again, other = made()
    again.load_state_dict(weights)
    load_optimiser_tensors(other, saved)
    trained(again, other, range(2, 4))
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in task.state_dict().items())


def test_clipping_scaled_gradients_is_left_to_the_plain_optimiser() -> None:
    settings = TrainingSettings(gradient_clip=1.0)
    fused = [
        build_optimiser_for(settings, finetuning(), CPU, scaled=scaled).param_groups[0]["fused"] for scaled in (True, False)
    ]
    assert fused == [False, True]
