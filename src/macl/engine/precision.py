"""In which precision most operations of a run compute, and what its device has instructions for."""

from __future__ import annotations

import os
from typing import Literal

import torch
from lightning_fabric import Fabric

Precision = Literal["fp32", "bf16", "fp16"]
WantedPrecision = Literal["auto", "fp32", "bf16", "fp16"]

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""Of processors on which bf16 was measured to be faster. Others only emulate it, or are unknown."""

SETS_WITHOUT_BF16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip
"""Instruction sets to which ONEDNN_MAX_CPU_ISA can hold PyTorch's convolutions, without bf16."""


def choose_precision(wanted: WantedPrecision, device: str) -> Precision:
    """The precision of a training run.

    Args:
        wanted: "auto": bf16 where the device has instructions for it, fp16 on older GPUs, fp32
            elsewhere.
        device: "cpu", "cuda" or "mps".
    """
    if wanted != "auto":
        return wanted
    if has_bf16(device):
        return "bf16"
    return "fp16" if device == "cuda" else "fp32"


def has_bf16(device: str) -> bool:
    """Whether "cpu", "cuda" or "mps" has instructions for bf16 here, and does not emulate it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in older PyTorch
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in SETS_WITHOUT_BF16
    return allowed and any(map(capabilities.get, BF16_INSTRUCTIONS))


def computes_in_bf16(fabric: Fabric) -> bool:
    """Whether a training run's precision is bf16."""
    return str(fabric.strategy.precision.precision) == "bf16-mixed"


def predicts_in_bf16(trained_in: WantedPrecision, device: str) -> bool:
    """Whether a finished run predicts in bf16: where the device has it, unless the run's settings
    say fp32."""
    return trained_in != "fp32" and has_bf16(device)
