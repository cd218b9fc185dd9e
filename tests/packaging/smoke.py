"""An installed macl at work, from its version to a report, on scans made here.

Run by `check_packaging.py` in an empty folder, with the environment's own interpreter and the names
of the extras that were installed.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK

SMALL = (
    "backbone_settings.width=4", "training.size=16", "training.batch_size=4", "training.steps=2",
    "training.compile=off",
)  # fmt: skip


def macl(*words: str) -> str:
    """What the environment's `macl` prints; it must succeed."""
    program = Path(sys.executable).with_name("macl")
    done = subprocess.run([program, *words], capture_output=True, text=True)
    assert done.returncode == 0, f"macl {' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def write_scans(folder: Path, people: int) -> None:
    """Scans with a bright ball, each with its mask, in the layout of nnU-Net's imagesTr."""
    axes = np.indices((8, 24, 24))
    for number in range(people):
        ball = np.hypot(*(axes[1:] - 10 - number)) + abs(axes[0] - 4) < 6
        image = np.random.default_rng(number).normal(100 + 80 * ball, 5).astype(np.int16)
        for part, array in (("scans", image), ("masks", ball.astype(np.uint8))):
            (folder / part).mkdir(exist_ok=True)
            path = folder / part / f"person{number}.nii.gz"
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))


def import_seconds() -> float:
    """Processor time of `import macl`, the best of three."""
    code = (
        "import time; start = time.process_time(); import macl; print(time.process_time() - start)"
    )
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))


def train(stage: str, out: str, *words: str) -> None:
    """Two steps of a training."""
    settings = [word for setting in SMALL for word in ("--set", setting)]
    data = ("my.store", "--split", "my.json")
    macl(stage, *data, "--out", out, "--device", "cpu", *words, *settings)


def main(extras: Sequence[str]) -> None:
    """Everything once, with what the extras add."""
    seconds = import_seconds()
    assert seconds < 0.1, f"`import macl` takes {seconds:.2f} s"
    print(macl("--version"), end="")
    assert "pretrain" in macl("--help")
    write_scans(Path(), people=4)
    macl("inspect", "scans", "--labels", "masks")
    macl("prepare", "scans", "my.store", "--labels", "masks")
    macl("split", "my.store", "--out", "my.json", "--test", "1", "--budgets", "2")
    train("pretrain", "runs/macl")
    train("finetune", "runs/few", "--labels", "2", "--init", "runs/macl")
    train("selftrain", "runs/self", "--labels", "2", "--init", "runs/few")
    macl("predict", "runs/few", "my.store", "--out", "runs/few/predictions", "--device", "cpu")
    macl("evaluate", "runs/few/predictions", "my.store", "--out", "runs/few/cases.csv")
    macl("report", "runs/few", "runs/macl", "--out", "report.html")
    macl("check", "runs/few")
    macl("predict", "runs/few", "scans/person0.nii.gz", "--out", "masks-out", "--device", "cpu")
    mask = SimpleITK.ReadImage("masks-out/person0.nii.gz")
    assert mask.GetSize() == (24, 24, 8)
    if "demo" in extras:
        importlib.import_module("nilearn.datasets")
    if "onnx" in extras:
        macl("export", "runs/few", "--to", "onnx", "--out", "few.onnx")
        importlib.import_module("onnxruntime").InferenceSession("few.onnx")
    if "slurm" in extras:
        importlib.import_module("submitit")


if __name__ == "__main__":
    main(sys.argv[1:])
