"""What holds for every test."""

from __future__ import annotations

import os

# The tests' tensors are tiny: several threads only wait for each other, in these processes and in
# those they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# They promise what holds in fp32, and are to compute alike on every processor.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE"
