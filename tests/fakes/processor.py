"""What the processor under the tests can do."""

from __future__ import annotations

import pytest
import torch

needs_bf16_convolutions = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="PyTorch has no convolutions in bf16 for this processor",
)
