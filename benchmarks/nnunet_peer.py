"""nnU-Net's 2D network on the labelled people of a split, for some minutes of processor time.

    python benchmarks/nnunet_peer.py SOURCE STORE SPLIT --labels 1 --minutes 10 \\
        --nnunet NNUNET_ENVIRONMENT/bin --out peer

The scans of SOURCE (of which `macl prepare` made STORE) become an nnU-Net data set: the budget's
people are its training cases, the split's test people are predicted and scored by `macl evaluate`.
nnU-Net plans for these scans, trains in one process with its own augmentation and learning rate
(which falls with the share of the time that is used up), and predicts as it always does. All but
the length is its own, unless --batch-size or --no-mirroring say otherwise. The draw takes the
labelled people as `macl benchmark` does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from macl import plugins
from macl.data.draws import draw_labelled_people
from macl.data.resolved_split import resolve_split
from macl.data.splits import read_split
from macl.data.store import Store
from macl.io.source import Case
from macl.preprocessing.source import recognise, scan_source
from macl.stages.evaluate import evaluate

DATASET = "Dataset901_Peer"
PLANS = "nnUNetPlans"
TRAINER = """
import json, os, time
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)


class _Minutes:
    def run_training(self):
        seconds = 60 * float(os.environ["PEER_MINUTES"])
        self.on_train_start()
        self.network.train()
        start, steps = time.process_time(), 0
        while (share := (time.process_time() - start) / seconds) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * (1 - share) ** 0.9
            self.train_step(next(self.dataloader_train))
            steps += 1
        self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_final.pth"))
        print("steps", steps, flush=True)


class TimedTrainer(_Minutes, nnUNetTrainer):
    pass


class TimedTrainerNoMirroring(_Minutes, nnUNetTrainerNoMirroring):
    pass
"""


def main() -> None:
    """Prepare, train, predict and score."""
    arguments = _arguments()
    out = Path(arguments.out)
    raw, images = out / "raw" / DATASET, out / "test"
    labelled, tested = _people(arguments)
    _write(arguments.source, raw, images, labelled, tested)
    trainers = out / "trainers"
    trainers.mkdir(exist_ok=True)
    (trainers / "timed_trainer.py").write_text(TRAINER)
    environment = {
        **os.environ, "nnUNet_raw": str(raw.parent), "nnUNet_results": str(out / "results"),
        "nnUNet_preprocessed": str(out / "preprocessed"), "nnUNet_extTrainer": str(trainers),
        "PEER_MINUTES": str(arguments.minutes), "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def call(command: str, *words: object, **more: str) -> None:
        program = Path(arguments.nnunet) / f"nnUNetv2_{command}"
        subprocess.run([str(program), *map(str, words)], env=environment | more, check=True)

    call("plan_and_preprocess", "-d", 901, "-c", "2d", "-np", 1, "-npfp", 1)
    if arguments.batch_size:
        plans = out / "preprocessed" / DATASET / f"{PLANS}.json"
        plan = json.loads(plans.read_text())
        plan["configurations"]["2d"]["batch_size"] = arguments.batch_size
        plans.write_text(json.dumps(plan))
    trainer = "TimedTrainerNoMirroring" if arguments.no_mirroring else "TimedTrainer"
    chosen = ("-tr", trainer, "-device", "cpu")
    call("train", 901, "2d", "all", *chosen, nnUNet_n_proc_DA="0", nnUNet_compile="f")
    masks = out / "masks"
    call(
        "predict", "-d", 901, "-i", images, "-o", masks, "-c", "2d", "-f", "all", *chosen,
        "-npp", 1, "-nps", 1,
    )  # fmt: skip
    for extra in masks.glob("*.json"):
        extra.unlink()
    evaluate(masks, arguments.store, out / "cases.csv")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("split")
    parser.add_argument("--labels", required=True)
    parser.add_argument("--draw", type=int)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--no-mirroring", action="store_true")
    parser.add_argument("--nnunet", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _people(arguments: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the labelled and of the test cases."""
    store = Store.open(arguments.store)
    resolved = resolve_split(read_split(arguments.split), store)
    if arguments.draw is not None:
        resolved = resolve_split(draw_labelled_people(resolved, store, arguments.draw), store)
    return resolved.labelled_cases(arguments.labels), resolved.test_cases


def _write(
    source: Path, raw: Path, images: Path, labelled: Iterable[str], tested: Iterable[str]
) -> None:
    """The labelled cases as an nnU-Net data set, and the test cases' images beside it."""
    layout = recognise(source, plugins.readers())
    listing = scan_source(source, layout.read(source)).source
    cases: dict[str, Case] = {case.name: case for case in listing.cases}
    for folder in (raw / "imagesTr", raw / "labelsTr", images):
        folder.mkdir(parents=True)
    labelled = tuple(labelled)
    for name in labelled:
        _copy_channels(cases[name], raw / "imagesTr")
        label = cases[name].label
        assert isinstance(label, Path)
        shutil.copyfile(label, raw / "labelsTr" / f"{name}.nii.gz")
    for name in tested:
        _copy_channels(cases[name], images)
    description = {
        "channel_names": {str(number): "MRI" for number in range(len(listing.channels))},
        "labels": {name: value for value, name in listing.classes.items()},
        "numTraining": len(labelled),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))


def _copy_channels(case: Case, folder: Path) -> None:
    for number, image in enumerate(case.images):
        assert isinstance(image, Path)
        shutil.copyfile(image, folder / f"{case.name}_{number:04d}.nii.gz")


if __name__ == "__main__":
    main()
