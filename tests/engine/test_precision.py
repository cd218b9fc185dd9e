"""Which precision "auto" is: the fastest that the device has instructions for."""

from __future__ import annotations

import pytest
import torch

from macl.engine.precision import choose_precision, has_bf16, predicts_in_bf16


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Say what the processor has, and what PyTorch's convolutions may use of it."""

    def say(capabilities: dict[str, bool], allowed: str = "") -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
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
