"""nnU-Net's 2D network on the labelled people of a split, for some minutes of processor time.

    NNUNET_VENV/bin/python benchmarks/nnunet_peer.py SOURCE STORE SPLIT --labels 1 --minutes 10 \\
        --repeats 5 --out peer

Run in the environment that `make check-nnunet` builds, with macl and nnU-Net. The scans of SOURCE
(of which `macl prepare` made STORE) become an nnU-Net data set: the budget's people are its
training cases, the split's test people are predicted and scored by `macl evaluate`. A repeat draws
the labelled people as a repeat of `macl benchmark` does. A call that was stopped continues with the
first repeat that is not finished.

nnU-Net makes its own plan for these scans, and trains and predicts as it always does, mirroring
included, except that

- it trains for the given time, on one thread that also augments, and its learning rate falls over
  that time as over its 1000 epochs (from 0.01, to the power of 0.9);
- it trains on all labelled cases (fold "all"): no case is left to choose a checkpoint,
  a configuration or postprocessing by;
- with --no-mirroring, it mirrors neither in training nor in prediction;
- with --spacing-mm, it plans for this spacing in plane, such as that of STORE.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from macl import plugins
from macl.data.draws import draw_labelled_people
from macl.data.resolved_split import ResolvedSplit, resolve_split
from macl.data.splits import read_split
from macl.data.store import Store
from macl.io.source import Case, Source
from macl.preprocessing.source import recognise, scan_source
from macl.records.scores import read_rows
from macl.stages.evaluate import evaluate
from macl.utils.files import write_json
from macl.workflows.benchmark.comparisons import dice_of_people

DATASET = "Dataset901_Peer"
TRAINERS = Path(__file__).parent / "nnunet_trainers"
CONFIGURATION = "2d"


def main() -> None:
    """Run every repeat that is not finished, and print what came of all."""
    arguments = _arguments()
    store = Store.open(arguments.store)
    resolved = resolve_split(read_split(arguments.split), store)
    layout = recognise(arguments.source, plugins.readers())
    source = scan_source(arguments.source, layout.read(arguments.source)).source
    described = {
        "labels": arguments.labels,
        "minutes": arguments.minutes,
        "mirroring": not arguments.no_mirroring,
        "spacing_mm": arguments.spacing_mm,
        "split": resolved.split.model_dump(mode="json"),
    }
    _same_as_before(arguments.out / "arguments.json", described)
    repeats = []
    for draw in range(arguments.repeats):
        drawn = resolve_split(draw_labelled_people(resolved, store, draw), store)
        folder = arguments.out / f"draw{draw}"
        if not (folder / "repeat.json").is_file():
            _write_dataset(source, folder, drawn.labelled_cases(arguments.labels), drawn.test_cases)
            write_json(folder / "repeat.json", _repeat(folder, arguments, drawn))
        repeats.append(json.loads((folder / "repeat.json").read_text()))
    _show(repeats)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("split")
    parser.add_argument("--labels", required=True, help="a budget of the split")
    parser.add_argument("--minutes", type=float, required=True, help="of training, per repeat")
    parser.add_argument("--repeats", type=int, default=1, help="draws of the labelled people")
    parser.add_argument("--no-mirroring", action="store_true")
    parser.add_argument("--spacing-mm", type=float, help="in plane, in place of its own choice")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _same_as_before(record: Path, described: dict[str, Any]) -> None:
    """Refuse to continue in a folder that other arguments have begun."""
    record.parent.mkdir(parents=True, exist_ok=True)
    if not record.is_file():
        write_json(record, described)
    elif json.loads(record.read_text()) != described:
        sys.exit(f"{record.parent} was begun with other arguments ({record}): name another --out.")


def _write_dataset(
    source: Source, folder: Path, labelled: tuple[str, ...], tested: tuple[str, ...]
) -> None:
    """Links to the labelled cases as an nnU-Net data set, and to the test cases' images."""
    cases = {case.name: case for case in source.cases}
    raw, images = folder / "raw" / DATASET, folder / "test"
    for part in (raw / "imagesTr", raw / "labelsTr", images):
        part.mkdir(parents=True, exist_ok=True)
    for name in labelled:
        _link_channels(cases[name], raw / "imagesTr")
        _link(cases[name].label, raw / "labelsTr" / f"{name}.nii.gz")
    for name in tested:
        _link_channels(cases[name], images)
    described = {
        "channel_names": {str(number): "MRI" for number in range(len(source.channels))},
        "labels": {name: value for value, name in source.classes.items()},
        "numTraining": len(labelled),
        "file_ending": ".nii.gz",
    }
    write_json(raw / "dataset.json", described)


def _link_channels(case: Case, folder: Path) -> None:
    for number, image in enumerate(case.images):
        _link(image, folder / f"{case.name}_{number:04d}.nii.gz")


def _link(file: Any, link: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(Path(file).resolve())


def _repeat(folder: Path, arguments: argparse.Namespace, drawn: ResolvedSplit) -> dict[str, Any]:
    """Plan, train, predict and score."""
    trainer = "MinutesTrainerNoMirroring" if arguments.no_mirroring else "MinutesTrainer"
    environment = {
        **os.environ,
        **{f"nnUNet_{part}": str(folder / part) for part in ("raw", "preprocessed", "results")},
        "nnUNet_extTrainer": str(TRAINERS), "nnUNet_compile": "f", "nnUNet_def_n_proc": "1",
        "PEER_MINUTES": str(arguments.minutes), "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def call(command: str, *words: object, **more: str) -> float:
        """The wall minutes of a command of nnU-Net's, whose output goes to the log."""
        print(f"{folder.name}: {command}", flush=True)
        start = time.monotonic()
        program = Path(sys.executable).with_name(f"nnUNetv2_{command}")
        log = folder / f"{command}.log"
        with log.open("w") as file:
            done = subprocess.run(
                [str(program), *map(str, words)],
                env=environment | more, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if done.returncode:
            sys.exit(f"{log.read_text()[-2000:]}\nnnUNetv2_{command} failed: see {log}.")
        return (time.monotonic() - start) / 60

    plans = folder / "preprocessed" / DATASET / "nnUNetPlans.json"
    run = folder / "results" / DATASET / f"{trainer}__nnUNetPlans__{CONFIGURATION}" / "fold_all"
    if not (run / "checkpoint_final.pth").is_file():
        shutil.rmtree(plans.parent, ignore_errors=True)
        wanted = arguments.spacing_mm  # along z too, which keeps z first; 2D uses the other two
        call(
            "plan_and_preprocess", "-d", 901, "-c", CONFIGURATION, "-np", 1, "-npfp", 1,
            *(("-overwrite_target_spacing", wanted, wanted, wanted) if wanted else ()),
        )  # fmt: skip
        call(
            "train", 901, CONFIGURATION, "all", "-tr", trainer, "-device", "cpu",
            nnUNet_n_proc_DA="0",
        )  # fmt: skip
    masks = folder / "masks"
    predicting = call(
        "predict", "-d", 901, "-i", folder / "test", "-o", masks, "-c", CONFIGURATION, "-f", "all",
        "-tr", trainer, "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_progress_bar",
    )  # fmt: skip
    for extra in masks.glob("*.json"):
        extra.unlink()
    evaluate(masks, arguments.store, folder / "cases.csv")
    plan = json.loads(plans.read_text())["configurations"][CONFIGURATION]
    people = dice_of_people(read_rows(folder / "cases.csv"), drawn.groups)
    return {
        "labelled": drawn.people(drawn.labelled_cases(arguments.labels)),
        "spacing_mm": plan["spacing"],
        "patch": plan["patch_size"],
        "batch_size": plan["batch_size"],
        "steps": json.loads((run / "steps.json").read_text()),
        "minutes_predicting": predicting,
        "dice": statistics.fmean(people.values()),
        "dice_of_people": people,
    }


def _show(repeats: Iterable[dict[str, Any]]) -> None:
    """Print one line for each repeat, and their mean."""
    print("\n| draw | labelled | patch | batch | steps | Dice % |\n|---|---|---|---:|---:|---:|")
    means = []
    for draw, row in enumerate(repeats):
        patch = " × ".join(map(str, row["patch"]))
        print(
            f"| {draw} | {', '.join(row['labelled'])} | {patch} | {row['batch_size']} "
            f"| {row['steps']} | {row['dice']:.1f} |"
        )
        means.append(row["dice"])
    if len(means) > 1:
        mean, deviation = statistics.fmean(means), statistics.stdev(means)
        print(f"\nDice {mean:.1f} ± {deviation:.1f} % over {len(means)} repeats.")


if __name__ == "__main__":
    main()
