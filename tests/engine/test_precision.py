"""Which precision "auto" is: the fastest that the device has instructions for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fakes.batches import batch
from fakes.networks import SMALL, method, odd_patch, small_network
from fakes.processor import needs_bf16_convolutions
from macl.engine.precision import choose_precision, has_bf16, predicts_in_bf16
from macl.plugins import find, names
from macl.tasks.segmentation import Segmenter

SMALL_METHOD = {
    "queue": 8, "prototypes": 8, "hidden": 16, "projection": 8, "small_crops": 1,
    "discriminator_width": 2,
}  # fmt: skip


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Say what the processor has, and what PyTorch's convolutions may use of it."""

    def say(capabilities: dict[str, bool], allowed: str = "") -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)

    return say


@pytest.mark.parametrize(
    ("capabilities", "allowed", "expected"),
    [
        ({"avx512_bf16": True}, "", "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "ALL", "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "", "fp32"),
        ({"avx512_bf16": True}, "avx512_core", "fp32"),
        ({"bf16": True}, "", "fp32"),
        ({}, "", "fp32"),
    ],
)
def test_bf16_where_the_processor_has_it(processor, capabilities, allowed, expected) -> None:
    processor(capabilities, allowed)
    assert choose_precision("auto", "cpu") == expected
    assert has_bf16("cpu") is (expected == "bf16")
    assert choose_precision("auto", "mps") == "fp32"
    for asked in ("fp32", "bf16", "fp16"):
        assert choose_precision(asked, "cpu") == asked


@pytest.mark.parametrize(("new", "expected"), [(True, "bf16"), (False, "fp16")])
def test_bf16_on_gpus_that_do_not_emulate_it(monkeypatch, new: bool, expected: str) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: new or including_emulation
    )
    assert choose_precision("auto", "cuda") == expected


def test_a_run_told_to_be_in_fp32_predicts_in_fp32(processor) -> None:
    processor({"avx512_bf16": True})
    assert [predicts_in_bf16(each, "cpu") for each in ("auto", "bf16", "fp32")] == [
        True,
        True,
        False,
    ]
    processor({})
    assert not predicts_in_bf16("bf16", "cpu")


@needs_bf16_convolutions
@pytest.mark.parametrize("progress", [0.0, 0.9])
@pytest.mark.parametrize("name", names("methods"))
def test_every_method_learns_in_bf16(name: str, progress: float) -> None:
    known = find("methods", name).Settings.model_fields
    own = {key: value for key, value in SMALL_METHOD.items() if key in known}
    torch.manual_seed(0)
    task = method(name, own, width=2)
    some = batch(6, side=64, progress=progress)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.step(some).loss
    assert loss.dtype == torch.float32
    loss.backward()
    gradients = [each.grad for each in task.parameters() if each.grad is not None]
    assert gradients
    assert all(each.isfinite().all() for each in gradients)


@needs_bf16_convolutions
@pytest.mark.parametrize(("name", "dims"), SMALL, ids=lambda value: f"{value}")
def test_every_network_segments_in_bf16(name: str, dims: int) -> None:
    torch.manual_seed(0)
    segmenter = Segmenter(small_network(name, dims), 3)
    patch = odd_patch(segmenter.network, smallest=3)
    images, labels = torch.randn(2, 1, *patch), torch.randint(0, 3, (2, *patch))
    with torch.autocast("cpu", torch.bfloat16):
        logits = segmenter(images)
    functional.cross_entropy(logits.float(), labels).backward()
    assert all(
        each.grad is not None and each.grad.isfinite().all() for each in segmenter.parameters()
    )
    segmenter.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        halved = segmenter(images).float().softmax(1)
    with torch.no_grad():
        torch.testing.assert_close(halved, segmenter(images).softmax(1), atol=0.1, rtol=0)
