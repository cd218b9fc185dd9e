"""The fast path computes what the plain one does: compiled, channels last, fused optimisers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from fakes.networks import method
from macl.augmentation.geometry import AXES
from macl.config.settings import FinetuneSettings, TrainingSettings
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.engine import compiling
from macl.engine.compiling import CompiledStep, compile_mode, to_device_layout
from macl.engine.optimisation import load_optimiser_tensors, optimiser_tensors
from macl.engine.stepper import Stepper
from macl.engine.task import StepOutput, Task
from macl.engine.trainer import make_fabric
from macl.models.unet import UNet
from macl.plugins import find, names
from macl.tasks.segmentation import SegmentationTask, build_segmenter

PATCH = {2: (64, 64), 3: (8, 32, 32)}
PATCHES, WIDTH = 6, 2
STRIDES = {2: None, 3: [[1, 2, 2], [1, 2, 2], 2]}
SMALL = {
    "queue": 8,
    "prototypes": 8,
    "hidden": 16,
    "projection": 8,
    "small_crops": 1,
    "discriminator_width": 2,
}
SCHEDULED = {"byol", "desd", "dira", "gcl", "swav"}
"""Methods whose steps ask how much of the run is done."""

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def batch(step: int, progress: float, dims: int = 2) -> Batch:
    patch = PATCH[dims]
    rng = SampleRng(0, torch.tensor(step), torch.arange(PATCHES))
    images, neighbours = (rng.normal(name, (1, *patch)) for name in ("image", "neighbour"))
    labels = rng.uniform("label", patch, 0, 3).long()
    centres = rng.uniform("position", (3,))
    return Batch(images, centres, rng, labels, neighbours=neighbours, progress=progress)


def pretraining(name: str, dims: int = 2) -> Task:
    fields = find("methods", name).Settings.model_fields
    own = {name: value for name, value in SMALL.items() if name in fields}
    torch.manual_seed(0)
    return method(name, own, WIDTH, dims=dims, strides=STRIDES[dims])


def finetuning(dims: int = 2) -> SegmentationTask:
    torch.manual_seed(0)
    network = {"width": WIDTH, "strides": STRIDES[dims]}
    settings = FinetuneSettings(dims=dims, backbone_settings=network)
    segmenter = build_segmenter(settings, UNet, channels=1, classes=3)
    return SegmentationTask(segmenter, settings, AXES[-dims:])


@pytest.mark.parametrize(
    ("name", "dims"),
    [*((name, 2) for name in (*names("methods"), "fine-tuning")), ("macl", 3), ("fine-tuning", 3)],
)
def test_a_compiled_step_is_the_step_and_is_compiled_once(name: str, dims: int) -> None:
    task = finetuning(dims) if name == "fine-tuning" else pretraining(name, dims)
    plain = copy.deepcopy(task)
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounter()
    step = torch.compile(task.step, backend=counter)
    frames = []
    for number in range(4):
        done = number / 100 + (0.8 if name in SCHEDULED else 0.0)
        ours = step(batch(number, done, dims))
        theirs = plain.step(batch(number, done, dims))
        assert torch.equal(ours.loss, theirs.loss)
        frames.append(counter.frame_count)
    # Only at the second step does the compiler know that progress is no constant.
    assert frames[name in SCHEDULED] == frames[-1] <= 6
    reasons = [
        reason for reason in counters["graph_break"] if "torch.compiler.disable" not in reason
    ]
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
    monkeypatch.setattr(
        compiling.torch, "compile", lambda step, mode: compile_with(step, backend=backend)
    )
    outcome = CompiledStep(task.step, "default")(batch(0, 0.0))
    outcome.loss.backward()
    assert torch.equal(outcome.loss, expected)
    assert "runs uncompiled" in capsys.readouterr().err


@pytest.mark.parametrize("pass_that_fails", ["fw_compiler", "bw_compiler"])
def test_what_cannot_be_launched_runs_as_it_is(monkeypatch, capsys, pass_that_fails) -> None:
    def train(mode: str) -> tuple[Stepper, float]:
        stepper = Stepper(finetuning(), TrainingSettings(compile=mode), make_fabric("cpu", "fp32"))
        stepper.compile(steps=0, voxels=0)
        return stepper, stepper(batch(0, 0.0)).loss.item()

    def launch(arguments):
        raise RuntimeError("out of resource: shared memory")

    launch._boxed_call = True
    compilers = {"fw_compiler": lambda graph, inputs: graph}
    compilers |= {pass_that_fails: lambda graph, inputs: launch}
    compile_with, backend = torch.compile, aot_autograd(**compilers)
    torch._dynamo.reset()
    monkeypatch.setattr(
        compiling.torch, "compile", lambda step, mode: compile_with(step, backend=backend)
    )
    ours, loss = train("default")
    assert "runs uncompiled" in capsys.readouterr().err
    plain, expected = train("off")
    assert loss == expected
    for one, other in zip(ours.task.parameters(), plain.task.parameters(), strict=True):
        assert torch.equal(one, other)


def test_once_compiled_a_step_fails_for_its_own_reasons(monkeypatch) -> None:
    monkeypatch.setattr(compiling.torch, "compile", lambda step, mode: step)
    step = CompiledStep(finetuning().step, "default")
    assert not step.gives_up(torch.OutOfMemoryError("CUDA out of memory"))
    step.proven = True
    assert not step.gives_up(RuntimeError("a broken batch"))


def test_what_a_recorded_step_gave_outlives_the_next(monkeypatch) -> None:
    """A CUDA graph writes every replay's results to the same memory; so does this step."""
    memory = torch.zeros(())

    def overwriting(step, mode):
        return lambda batch: StepOutput(memory + 0, {"part": memory.fill_(batch.progress)})

    monkeypatch.setattr(compiling.torch, "compile", overwriting)
    step = CompiledStep(finetuning().step, "reduce-overhead")
    values = [step(batch(number, float(number))).logged["part"] for number in range(3)]
    assert [value.item() for value in values] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("setting", "device", "steps", "voxels", "expected"),
    [
        ("off", GPU, 1_000_000, 1e12, None),
        ("auto", CPU, 1_000_000, 1e12, None),
        ("auto", GPU, 1000, 1e9, None),
        ("auto", GPU, 1000, 1e12, "default"),
        ("auto", GPU, 50_000, 1e9, "default"),
        ("reduce-overhead", GPU, 1000, 1e9, "reduce-overhead"),
        ("default", CPU, 1000, 1e9, "default"),
    ],
)
def test_long_runs_on_a_gpu_are_compiled(
    monkeypatch, setting, device, steps, voxels, expected
) -> None:
    monkeypatch.setattr(compiling, "_missing_for_compiling", lambda: None)
    assert compile_mode(TrainingSettings(compile=setting), device, steps, voxels) == expected


@pytest.mark.parametrize(
    ("place", "absent", "named"),
    [
        ("importlib.util.find_spec", None, "there is no Triton"),
        ("shutil.which", None, "there is no C compiler"),
        ("sysconfig.get_path", "/nowhere", r"there is no /nowhere/Python.h"),
    ],
)
def test_without_what_it_takes_nothing_is_compiled(
    monkeypatch, capsys, place: str, absent: str | None, named: str
) -> None:
    for each in ("importlib.util.find_spec", "shutil.which"):
        monkeypatch.setattr(each, lambda name: "there")
    monkeypatch.setattr(place, lambda name: absent)
    assert compile_mode(TrainingSettings(), GPU, 1, 1e12) is None
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(("name", "dims"), [("sgd", 2), ("adam", 2), ("adamw", 2), ("adamw", 3)])
def test_fused_moments_come_back_in_the_weights_own_memory_format(name: str, dims: int) -> None:
    """A fused kernel walks weights and moments side by side, and would pair the wrong ones."""

    def train(stepper: Stepper, steps: range) -> None:
        for number in steps:
            stepper(batch(number, 0.0, dims))

    def make() -> Stepper:
        settings = TrainingSettings(optimiser=name, learning_rate=0.01)
        return Stepper(finetuning(dims), settings, make_fabric("cpu", "fp32"))

    first = make()
    train(first, range(2))
    moments = optimiser_tensors(first.optimiser.optimizer)
    saved = {key: tensor.contiguous().clone() for key, tensor in moments.items()}
    weights = copy.deepcopy(first.task.state_dict())
    train(first, range(2, 4))
    second = make()
    second.task.load_state_dict(weights)
    load_optimiser_tensors(second.optimiser.optimizer, saved)
    train(second, range(2, 4))
    for key, tensor in first.task.state_dict().items():
        assert torch.equal(second.task.state_dict()[key], tensor), key


@pytest.mark.parametrize(
    ("dims", "memory_format"), [(2, torch.channels_last), (3, torch.channels_last_3d)]
)
def test_weights_lie_channels_last(dims: int, memory_format: torch.memory_format) -> None:
    task = finetuning(dims)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    to_device_layout(task, CPU)
    for name, tensor in task.state_dict().items():
        assert torch.equal(tensor, before[name])
        if tensor.ndim == dims + 2:
            assert tensor.is_contiguous(memory_format=memory_format), name


@pytest.mark.parametrize(("scaled", "clip"), [(True, 1.0), (False, 1.0), (True, None)])
def test_clipping_scaled_gradients_is_left_to_the_plain_optimiser(
    monkeypatch, scaled: bool, clip: float | None
) -> None:
    fabric = make_fabric("cpu", "fp32")
    if scaled:
        monkeypatch.setattr(fabric.strategy.precision, "scaler", object(), raising=False)
    stepper = Stepper(finetuning(), TrainingSettings(gradient_clip=clip), fabric)
    assert stepper.optimiser.param_groups[0]["fused"] is not (scaled and clip is not None)
