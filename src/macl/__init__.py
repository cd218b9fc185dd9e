"""macl: from unlabelled medical scans and a handful of labelled ones to a segmentation model.

Each stage of the path is a function here, named like its command. `load` gives a finished run as a
model in memory. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from macl.stages.check import check
    from macl.stages.choose import choose
    from macl.stages.embed import embed
    from macl.stages.evaluate import evaluate
    from macl.stages.export import export
    from macl.stages.finetune import finetune
    from macl.stages.inspect import inspect
    from macl.stages.load import load
    from macl.stages.predict import predict
    from macl.stages.prepare import prepare
    from macl.stages.pretrain import pretrain
    from macl.stages.report import report
    from macl.stages.selftrain import selftrain
    from macl.stages.split import split
    from macl.utils.errors import MaclError
    from macl.workflows.benchmark.command import benchmark
    from macl.workflows.run.command import run

__version__ = "0.1.0"

__all__ = [
    "MaclError",
    "benchmark",
    "check",
    "choose",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "load",
    "predict",
    "prepare",
    "pretrain",
    "report",
    "run",
    "selftrain",
    "split",
]

_ELSEWHERE = {
    "MaclError": "macl.utils.errors",
    "benchmark": "macl.workflows.benchmark.command",
    "run": "macl.workflows.run.command",
}
"""The modules of those that are no stage."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'macl' has no attribute {name!r}")
    module = importlib.import_module(_ELSEWHERE.get(name, f"macl.stages.{name}"))
    return globals().setdefault(name, getattr(module, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
