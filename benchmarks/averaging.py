"""What is averaging predictions worth? Over small rotations, over scales, and over seeds.

For every repeat of a grid (another draw of the labelled people, another seed), trains several
segmenters from scratch that differ by seed alone, and scores the first and all of them together.

    python benchmarks/averaging.py benchmarks/recipe_parts_hippocampus.toml --training strong \
        --seeds 3 --out runs/averaging_hippocampus --device cpu

What is finished is kept, and what was killed resumes, if the command is run again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from paired import table
from torch import Tensor, nn
from torch.nn import functional

import macl
from macl.data.draws import draw_labelled_people
from macl.data.resolved_split import ResolvedSplit, resolve_split
from macl.data.splits import read_split, write_split
from macl.data.store import Store
from macl.engine.trainer import make_fabric
from macl.inference.sliding_window import SegmenterMember, predict_slices
from macl.metrics import score_classes
from macl.plugins import find
from macl.records.runs import read_record
from macl.tasks.segmentation import load_segmenter, segmenter_settings
from macl.workflows.benchmark.grid import BenchmarkGrid, read_grid

ONE = "one view"
DEGREES, SCALES = (-10.0, 10.0), (0.9, 1.1)
VIEWS: Mapping[str, Sequence[tuple[float, float]]] = {
    ONE: [(0.0, 1.0)],
    "rotations": [(0.0, 1.0), *((degrees, 1.0) for degrees in DEGREES)],
    "scales": [(0.0, 1.0), *((0.0, scale) for scale in SCALES)],
    "rotations and scales": [
        (0.0, 1.0), *((degrees, 1.0) for degrees in DEGREES), *((0.0, scale) for scale in SCALES),
    ],
}  # fmt: skip
"""Degrees and scales that a prediction is averaged over."""


class AveragedOverViews(nn.Module):
    """A segmenter whose probabilities are averaged over rotated and scaled images.

    Args:
        segmenter: (B, C, *patch) → logits (B, K, *patch).
        views: degrees and scale of each.
    """

    def __init__(self, segmenter: nn.Module, views: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.segmenter, self.views = segmenter, views

    def forward(self, images: Tensor) -> Tensor:
        """The logarithm of the mean probabilities."""
        total = images.new_zeros(())
        for degrees, scale in self.views:
            moved = _moved(images, degrees, scale)
            probabilities = self.segmenter(moved).softmax(1)
            total = total + _moved(probabilities, -degrees, 1 / scale)
        return total.clamp(min=1e-9).log()


def _moved(maps: Tensor, degrees: float, scale: float) -> Tensor:
    """(B, C, y, x), rotated about the middle and magnified; 0 from outside."""
    if (degrees, scale) == (0.0, 1.0):
        return maps
    cosine, sine = (f(math.radians(degrees)) / scale for f in (math.cos, math.sin))
    aspect = maps.shape[-2] / maps.shape[-1]
    matrix = maps.new_tensor([[cosine, -sine * aspect, 0], [sine / aspect, cosine, 0]])
    grid = functional.affine_grid(
        matrix.expand(len(maps), 2, 3), list(maps.shape), align_corners=False
    )
    return functional.grid_sample(maps, grid, mode="bilinear", align_corners=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", type=Path, help="grid of a benchmark (.toml)")
    parser.add_argument("--training", required=True, help="one of its trainings, from scratch")
    parser.add_argument("--seeds", type=int, default=3, help="segmenters of an ensemble")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    given = parser.parse_args()
    grid = read_grid(given.grid)
    store = Store.open(grid.store)
    resolved = resolve_split(read_split(grid.split), store)
    together = f"{given.seeds} seeds"
    dice: dict[str, list[dict[str, float]]] = {}
    for repeat, draw in grid.seeds_and_draws:
        runs = trained(grid, store, resolved, given, repeat, draw)
        cases = resolved.test_cases
        for name, views in VIEWS.items():
            scores = score([member(runs[0], views, given.device)], store, cases, resolved)
            dice.setdefault(name, []).append(scores)
        ensemble = [member(run, VIEWS[ONE], given.device) for run in runs]
        dice.setdefault(together, []).append(score(ensemble, store, cases, resolved))
        text = table(dice, ONE, "averaged over")
        (given.out / "results.md").write_text(text, encoding="utf-8")
        (given.out / "results.json").write_text(json.dumps(dice, indent=1), encoding="utf-8")
    print(text)


def trained(
    grid: BenchmarkGrid,
    store: Store,
    resolved: ResolvedSplit,
    given: argparse.Namespace,
    repeat: int,
    draw: int | None,
) -> list[Path]:
    """Finished runs of a repeat, on the same people, each with a seed of its own."""
    split = given.out / "splits" / f"repeat{repeat}.json"
    write_split(split, draw_labelled_people(resolved, store, draw or 0))
    changes = next(each.set for each in grid.training if each.name == given.training)
    runs = [given.out / "cells" / f"repeat{repeat}__{number}" for number in range(given.seeds)]
    for number, run in enumerate(runs):
        macl.finetune(
            grid.store, run, init="scratch", split=split, labels=grid.labels[0],
            recipe=grid.recipes[0], overrides=(*grid.finetune.set, *changes), device=given.device,
            seed=repeat + 1000 * number, resume=True,
        )  # fmt: skip
    return runs


def member(run: Path, views: Sequence[tuple[float, float]], device: str) -> SegmenterMember:
    """A run's segmenter, which averages over views."""
    record = read_record(run)
    settings = segmenter_settings(record)
    where = make_fabric(device, "fp32").device
    segmenter = load_segmenter(run, find("models", settings.backbone), where)
    return SegmenterMember(AveragedOverViews(segmenter, views).eval(), settings.patch)


def score(
    ensemble: Sequence[SegmenterMember],
    store: Store,
    cases: Sequence[str],
    resolved: ResolvedSplit,
) -> dict[str, float]:
    """Test person → mean Dice in % over classes and scans, by the strict convention."""
    values: dict[str, list[float]] = {}
    classes = len(store.index.classes) - 1
    for name in cases:
        case = store.case(name)
        slices = predict_slices(ensemble, store.read(name), case.normalisation)
        prediction = np.stack([plane.argmax(0) for plane in slices])
        truth = store.read(name, "label").astype(np.int64)
        scores = score_classes(truth, prediction, classes, (1.0, 1.0, 1.0), "strict")
        dice = [100 * each.dice for each in scores if not math.isnan(each.dice)]
        if dice:
            values.setdefault(resolved.groups[name], []).append(float(np.mean(dice)))
    return {person: float(np.mean(own)) for person, own in values.items()}


if __name__ == "__main__":
    main()
