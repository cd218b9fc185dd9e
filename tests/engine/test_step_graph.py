"""What a step makes a device do, read off its graph: forward and backward, in bf16.

Shapes, types and memory formats are those of any device, so a CPU shows what a GPU would get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import config as functorch_config
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import config as inductor_config
from torch._inductor import metrics
from torch._inductor.graph import GraphLowering
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from fakes.networks import method, unet
from macl.augmentation.geometry import AXES
from macl.config.settings import FinetuneSettings, TrainingSettings
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.engine.compiling import to_device_layout
from macl.engine.stepper import Stepper
from macl.engine.task import StepOutput, Task
from macl.engine.trainer import make_fabric
from macl.models.unet import UNet
from macl.tasks.segmentation import SegmentationTask, build_segmenter

PATCHES, SIDE, WIDTH, CLASSES = 4, 64, 8, 3
PIXELS = PATCHES * SIDE * SIDE
IN_FP32 = {"macl": 2, "fine-tuning": CLASSES}
"""Numbers a pixel that may be in fp32: of a sampling grid, and of the probabilities of classes."""

WITHOUT_A_PASS = {
    *("getitem", "view", "detach", "alias", "permute", "transpose", "t", "expand", "squeeze"),
    *("unsqueeze", "slice", "select", "unbind", "as_strided"),
}
"""Operations that look at a tensor in another way, but neither read nor write it."""

Graphs = tuple[fx.Graph, fx.Graph]


def pretraining() -> Task:
    return method("macl", {}, WIDTH)


def finetuning(strides: list[int] | None = None) -> Task:
    settings = FinetuneSettings(backbone_settings={"width": WIDTH, "strides": strides})
    segmenter = build_segmenter(settings, UNet, channels=1, classes=CLASSES)
    return SegmentationTask(segmenter, settings, AXES[1:])


TASKS = {"macl": pretraining, "fine-tuning": finetuning}


def batch() -> Batch:
    rng = SampleRng(0, torch.tensor(1), torch.arange(PATCHES))
    images = rng.normal("image", (1, SIDE, SIDE))
    labels = rng.uniform("label", (SIDE, SIDE), 0, CLASSES).long()
    return Batch(images, rng.uniform("position", (3,)), rng, labels, progress=0.5)


def trace(make: Callable[[], Task]) -> Graphs:
    """The graphs of the forward and the backward pass of a step."""
    found: list[fx.Graph] = []

    def keep(graph: fx.GraphModule, inputs: object) -> Callable[..., object]:
        found.append(graph.graph)
        return make_boxed_func(graph.forward)

    torch.manual_seed(0)
    fabric = make_fabric("cpu", "bf16")
    stepper = Stepper(make(), TrainingSettings(precision="bf16"), fabric)
    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    step: Callable[[Batch], StepOutput] = torch.compile(stepper.task.step, backend=backend)
    with fabric.autocast():
        output = step(batch())
    output.loss.backward()
    forward, backward = found
    return forward, backward


@cache
def graphs(name: str) -> Graphs:
    return trace(TASKS[name])


def operations(graph: fx.Graph) -> Iterator[fx.Node]:
    return (node for node in graph.nodes if node.op == "call_function")


def tensors(node: fx.Node) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]


def inputs(node: fx.Node) -> list[Tensor]:
    return [tensor for source in node.all_input_nodes for tensor in tensors(source)]


def slow_convolutions(found: Graphs) -> list[str]:
    """Convolutions, and gradients of such, of maps in another type or memory format; maps as thin
    as the probabilities of classes may lie as they like."""
    slow = []
    for node in (node for graph in found for node in operations(graph)):
        if "convolution" not in str(node.target):
            continue
        for given in inputs(node):
            channels_last = given.ndim < 4 or given.stride(1) == 1 or given.shape[1] <= CLASSES
            if given.dtype != torch.bfloat16 or not channels_last:
                slow.append(f"{node}: {given.dtype} {tuple(given.shape)} {given.stride()}")
    return slow


def large_in_fp32(found: Graphs, numbers_a_pixel: int) -> list[str]:
    """Operations that yield larger tensors in fp32, other than weights and their gradients."""
    placeholders = [
        tensor for node in found[0].find_nodes(op="placeholder") for tensor in tensors(node)
    ]
    weights = {tensor.shape for tensor in placeholders if tensor.shape[:1] != (PATCHES,)}
    return [
        f"{node}: {tuple(tensor.shape)}"
        for graph in found
        for node in operations(graph)
        for tensor in tensors(node)
        if tensor.dtype == torch.float32
        and tensor.numel() > numbers_a_pixel * PIXELS
        and tensor.shape not in weights
    ]


def large_passes(found: Graphs) -> int:
    """How many operations yield at least one number for each pixel of the images."""
    return sum(
        any(tensor.numel() >= PIXELS and tensor.shape[:1] == (PATCHES,) for tensor in tensors(node))
        for graph in found
        for node in operations(graph)
        if not _only_looks(node)
    )


def _only_looks(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "").partition(".")[0] in WITHOUT_A_PASS


@pytest.mark.parametrize("name", TASKS)
def test_every_convolution_is_in_bf16_and_channels_last(name: str) -> None:
    assert slow_convolutions(graphs(name)) == []


@pytest.mark.parametrize("name", TASKS)
def test_no_map_is_in_fp32(name: str) -> None:
    assert large_in_fp32(graphs(name), IN_FP32[name]) == []


@pytest.mark.parametrize(("name", "at_most"), [("macl", 158), ("fine-tuning", 167)])
def test_no_pass_over_large_maps_is_added(name: str, at_most: int) -> None:
    assert large_passes(graphs(name)) <= at_most


def test_the_guards_see_what_makes_a_step_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(change: Callable[[Tensor], Tensor]) -> Graphs:
        def forward(self: nn.LeakyReLU, maps: Tensor) -> Tensor:
            return change(functional.leaky_relu(maps, self.negative_slope))

        monkeypatch.setattr(nn.LeakyReLU, "forward", forward)
        return trace(lambda: finetuning([2]))

    good = traced(lambda maps: maps)
    assert slow_convolutions(good) == large_in_fp32(good, CLASSES) == []
    assert slow_convolutions(traced(lambda maps: maps.contiguous()))
    assert large_in_fp32(traced(lambda maps: maps.float()), CLASSES)
    assert large_passes(traced(lambda maps: maps.clone())) > large_passes(good)


class MeasuredError(Exception):
    """Both passes are generated; there is no need to compile and run them."""


def test_the_compiler_needs_few_kernels_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a U-Net with two levels, as Inductor counts them."""
    kernels, bytes_ = [], []

    def measure(graph: GraphLowering) -> SimpleNamespace:
        before = metrics.generated_kernel_count
        graph.codegen()
        kernels.append(metrics.generated_kernel_count - before)
        bytes_.append(graph.count_bytes()[0])
        if len(kernels) == 2:
            raise MeasuredError
        return SimpleNamespace(call=lambda arguments: None, __file__="")

    monkeypatch.setattr(GraphLowering, "compile_to_module", measure)
    monkeypatch.setattr(functorch_config, "force_non_lazy_backward_lowering", True)
    monkeypatch.setattr(inductor_config, "fx_graph_cache", False)
    network = unet(WIDTH, strides=[2])
    to_device_layout(network, torch.device("cpu"))
    images = torch.zeros(PATCHES, 1, SIDE, SIDE)

    @torch.compile
    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(images).float().square().mean()

    torch._dynamo.reset()
    with pytest.raises(Exception, match="MeasuredError"):
        step()
    one_map = 2 * PIXELS * WIDTH
    assert sum(kernels) <= 93
    assert sum(bytes_) / one_map <= 103
