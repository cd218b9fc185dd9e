"""Check against nnU-Net itself: its planner, its loader and its training take macl's pre-training.

Run by `make check-nnunet`, in an environment with macl and nnunetv2. Scans of many kinds are
prepared by both. Then, with the plans of two of nnU-Net's planners, for slices and for volumes:

- macl prepares the scans as nnU-Net did, pre-trains the planned network and exports it;
- nnU-Net's own `load_pretrained_weights` reads the file: every pre-trained tensor must be there,
  under every name, and the encoder must give the same maps;
- an export for nnssl must state the network that holds its tensors;
- `nnUNetv2_train` takes a few steps from a fresh start and as many with `-pretrained_weights`, on
  the same patches, and macl reads its checkpoint.

The scans are drawn, or the first cases of a folder of the Medical Segmentation Decathlon
(`--decathlon Task04_Hippocampus`).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from preparation import TOLERANCE, compare, compare_kinds

from fakes.nnunet import LABELS
from fakes.scans import affine, anatomy, write_nifti
from macl.data.store import Store
from macl.models.conversion.nnunet import nnunet_names
from macl.plugins import find
from macl.records.runs import read_record
from macl.tasks.networks import plugin_settings
from macl.utils import checkpoint

DATASET, CASES = "Dataset999_Check", 5
PLANNERS = {"nnUNetPlans": "ExperimentPlanner", "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM"}
CONFIGURATIONS = {"2d": (2, "[32,32]"), "3d_fullres": (3, "[32,32,32]")}
PACKAGES = (
    "nnunetv2", "dynamic-network-architectures", "batchgenerators", "batchgeneratorsv2",
    "acvl-utils", "torch", "macl",
)  # fmt: skip


def call(*words: object) -> str:
    """What a command prints, run in this process, which saves its imports; its failure ends the
    check."""
    start = time.monotonic()
    argv = [str(word) for word in words]
    (command,) = entry_points(group="console_scripts", name=argv[0])
    printed = io.StringIO()
    failed = True
    try:
        with (
            patch.object(sys, "argv", argv),
            redirect_stdout(printed),
            redirect_stderr(printed),
        ):
            command.load()()
        failed = False
    except SystemExit as end:
        failed = bool(end.code)
        if failed:
            raise
    finally:
        if failed:
            print(f"{printed.getvalue()}\nThis failed: {' '.join(argv)}", flush=True)
    shown = " ".join(Path(word).name for word in argv)
    print(f"[{time.monotonic() - start:5.1f} s] {shown}", flush=True)
    return printed.getvalue()


def copy_scans(decathlon: Path, folder: Path) -> None:
    """A raw data set of nnU-Net's, of the first cases of one of the Decathlon."""
    described = json.loads((decathlon / "dataset.json").read_text())
    images = sorted(path.name for path in (decathlon / "imagesTr").glob("[!.]*.nii.gz"))[:CASES]
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (folder / part).mkdir(parents=True)
        for name in images:
            copied = folder / part / name.replace(".nii.gz", ending)
            shutil.copyfile(decathlon / part / name, copied)
    labels = {name: int(value) for value, name in described["labels"].items()}
    describe(folder, described["modality"], labels)


def draw_scans(folder: Path) -> None:
    """A raw data set of nnU-Net's, large enough for a plan of several stages."""
    for number in range(CASES):
        image, label = anatomy(number, (40, 48, 48))
        write_nifti(folder / "imagesTr" / f"{number:03d}_0000.nii.gz", image, affine((1, 1, 1)))
        write_nifti(folder / "labelsTr" / f"{number:03d}.nii.gz", label, affine((1, 1, 1)))
    describe(folder, {"0": "MR"}, LABELS)


def describe(folder: Path, channels: dict[str, str], labels: dict[str, int]) -> None:
    """Write the `dataset.json` of a raw data set of nnU-Net's."""
    described = {
        "channel_names": channels,
        "labels": labels,
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(described))


def planned_network(plans: Path, configuration: str, classes: int) -> torch.nn.Module:
    """The network that nnU-Net builds from its plan, for images of one channel."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    stated = PlansManager(str(plans)).get_configuration(configuration)
    return get_network_from_plans(
        stated.network_arch_class_name,
        stated.network_arch_init_kwargs,
        stated.network_arch_init_kwargs_req_import,
        1,
        classes,
        deep_supervision=True,
    )


def difference_of_maps(run: Path, network: torch.nn.Module) -> float:
    """How far the encoder's maps of nnU-Net's network are from those of macl's, of one image."""
    record = read_record(run)
    plugin = find("models", "nnunet")
    settings = plugin_settings(plugin, record.settings["backbone_settings"], "backbone_settings")
    own = plugin(settings, 1, dims=record.settings["dims"])
    own.load_state_dict(checkpoint.read(run / "weights.safetensors").tensors, strict=False)
    image = torch.randn(1, 1, *record.patch, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        pairs = zip(own.eval().encode(image), network.eval().encoder(image), strict=True)
        return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def load_nnssl(file: Path, run: Path) -> float:
    """Build the network that an export for nnssl states, as nnU-Net would, and load all of it."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    content = torch.load(file, weights_only=True)
    stated = content["nnssl_adaptation_plan"]["architecture_plans"]
    network = get_network_from_plans(
        stated["arch_class_name"], stated["arch_kwargs"], stated["arch_kwargs_requiring_import"],
        1, 3, deep_supervision=True,
    )  # fmt: skip
    missing, unexpected = network.load_state_dict(content["network_weights"], strict=False)
    assert not unexpected
    assert all(".seg_layers." in key for key in missing)
    return difference_of_maps(run, network)


def load(plans: Path, configuration: str, run: Path, file: Path) -> dict[str, Any]:
    """Let nnU-Net load an export, and compare tensors and the encoder's maps with the run's."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    network = planned_network(plans, configuration, 3)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    load_pretrained_weights(network, str(file))
    after = network.state_dict()
    trained = checkpoint.read(run / "weights.safetensors").tensors
    stages = len({key.split(".")[2] for key in after if key.startswith("decoder.stages.")})
    keys = [(key, own) for own in trained for key in nnunet_names(own, stages)]
    equal = sum(torch.equal(after[key], trained[own]) for key, own in keys)
    assert equal == len(keys)
    assert any(not torch.equal(after[key], before[key]) for key, _ in keys)
    heads = [key for key in after if ".seg_layers." in key]
    assert heads
    assert all(torch.equal(after[key], before[key]) for key in heads)
    halves = {half: sum(own.startswith(half) for own in trained) for half in ("encoder", "decoder")}
    assert all(halves.values())
    maps = difference_of_maps(run, network)
    assert maps < TOLERANCE
    return {
        "network": type(network).__name__,
        "configuration": configuration,
        "keys in nnU-Net": len(after),
        "encoder tensors": halves["encoder"],
        "decoder tensors": halves["decoder"],
        "their keys": len(keys),
        "equal after loading": equal,
        "maps within": maps,
    }


def compare_preparation(store: Path, preprocessed: Path) -> dict[str, Any]:
    """Compare a store's cases with what nnU-Net has preprocessed by the same plan."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    opened = Store.open(store)
    written = nnUNetDatasetBlosc2(str(preprocessed))
    differences = []
    for case in opened.cases:
        data, label, *_ = written.load_case(case)
        differences.append(compare(opened, case, np.asarray(data[:]), np.asarray(label[:])))
    size = " × ".join(map(str, next(iter(opened.cases.values())).size))
    return {
        "scans": f"data set, {preprocessed.name}",
        "cases": len(differences),
        "voxels": size,
        "within": max(differences),
    }


def check_planned(
    folder: Path, name: str, configuration: str, iterations: int, found: dict[str, list]
) -> None:
    """Prepare, pre-train, export, load and train, for one configuration of nnU-Net's own plan."""
    dims, size = CONFIGURATIONS[configuration]
    plans = folder / "preprocessed" / DATASET / f"{name}.json"
    run = folder / f"{name}-{configuration}"
    file, store = folder / f"{run.name}.pth", folder / f"{run.name}.store"
    call(
        "macl", "prepare", folder / "raw" / DATASET, store, "--workers", 1, "--plans", plans,
        "--configuration", configuration,
    )  # fmt: skip
    stated = json.loads(plans.read_text())["configurations"][configuration]
    found["prepared"].append(compare_preparation(store, plans.parent / stated["data_identifier"]))
    call(
        "macl", "pretrain", store, "--out", run, "--device", "cpu",
        "--set", f"dims={dims}", "--set", "backbone=nnunet",
        "--set", f"backbone_settings.plans={plans}",
        "--set", f"backbone_settings.configuration={configuration}",
        "--set", "method_settings.decoder_blocks=1", "--set", f"training.size={size}",
        "--set", "training.batch_size=4", "--set", "training.steps=2",
    )  # fmt: skip
    call(
        "macl", "export", run, "--to", "nnunet", "--plans", plans,
        "--configuration", configuration, "--out", file,
    )  # fmt: skip
    loaded = load(plans, configuration, run, file)
    if dims == 3:
        nnssl = folder / f"{run.name}-nnssl.pth"
        call("macl", "export", run, "--to", "nnssl", "--out", nnssl)
        assert load_nnssl(nnssl, run) < TOLERANCE
    words = (999, configuration, "all", "-p", name, "-tr", "ShortTrainer", "-device", "cpu")
    for start, more in (("fresh", ()), ("pre-trained", ("-pretrained_weights", file))):
        printed = call("nnUNetv2_train", *words, *more)
        losses = dict(re.findall(r"(train|val)_loss (\S+)", printed))
        found["first epoch"].append(
            {
                "network": loaded["network"],
                "configuration": configuration,
                "iterations": iterations,
                "start": start,
                "training loss": float(losses["train"]),
                "validation loss": float(losses["val"]),
            }
        )

    split = folder / f"{run.name}.json"
    call("macl", "split", store, "--out", split, "--test", "1", "--budgets", "1")
    result = folder / "results" / DATASET / f"ShortTrainer__{name}__{configuration}" / "fold_all"
    call(
        "macl", "finetune", store, "--init", result / "checkpoint_final.pth",
        "--split", split, "--labels", "1", "--out", folder / f"{run.name}-tuned",
        "--device", "cpu", "--set", f"training.size={size}", "--set", "training.batch_size=2",
        "--set", "training.steps=1",
    )  # fmt: skip
    transfer = json.loads((folder / f"{run.name}-tuned" / "transfer.json").read_text())
    assert transfer["counts"].keys() == {"loaded"}
    assert not transfer["unused"]
    found["weights"].append(loaded | {"back in macl": transfer["counts"]["loaded"]})


def set_up(folder: Path, iterations: int) -> None:
    """Tell nnU-Net its folders and the trainer, before it is imported."""
    os.environ |= {
        **{f"nnUNet_{part}": str(folder / part) for part in ("raw", "preprocessed", "results")},
        "nnUNet_extTrainer": str(Path(__file__).parent / "trainers"),
        "nnUNet_compile": "f",
        "CHECK_ITERATIONS": str(iterations),
    }


def plan(configurations: list[str]) -> None:
    """Plan with each planner; all of them share what is preprocessed for the first."""
    os.environ |= {"nnUNet_n_proc_DA": "1"}
    first, *more = PLANNERS.values()
    call(
        "nnUNetv2_plan_and_preprocess", "-d", 999, "-pl", first, "-np", 1, "-npfp", 1,
        "-c", *configurations,
    )  # fmt: skip
    for planner in more:
        call("nnUNetv2_plan_experiment", "-d", 999, "-pl", planner)
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # no processes in training; the planner takes no 0


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as a table of Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [
        [f"{value:.2g}" if isinstance(value, float) else str(value) for value in row.values()]
        for row in rows
    ]
    print(f"\n## {title}", *(f"| {' | '.join(line)} |" for line in lines), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--configurations", nargs="*", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS)
    )
    parser.add_argument("--iterations", type=int, default=5, help="of each training of nnU-Net's")
    parser.add_argument("--decathlon", type=Path, help="a folder such as Task04_Hippocampus")
    parser.add_argument("--json", type=Path, help="write the result there too")
    chosen = parser.parse_args()
    start = time.monotonic()
    found: dict[str, list] = {"prepared": compare_kinds(), "weights": [], "first epoch": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        set_up(folder, chosen.iterations)
        raw = folder / "raw" / DATASET
        if chosen.decathlon:
            copy_scans(chosen.decathlon, raw)
        else:
            draw_scans(raw)
        plan(chosen.configurations)
        for plans in PLANNERS:
            for configuration in chosen.configurations:
                check_planned(folder, plans, configuration, chosen.iterations, found)
    for title, rows in found.items():
        show(title.capitalize(), rows)
    about = {
        "minutes": round((time.monotonic() - start) / 60, 1),
        "data": chosen.decathlon.name if chosen.decathlon else "drawn",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
    result = json.dumps(about | found, indent=1, ensure_ascii=False)
    if chosen.json:
        chosen.json.write_text(result + "\n", encoding="utf-8")
    print(f"\n{result}\n\nnnU-Net takes what macl exports, and macl what nnU-Net has trained.")


if __name__ == "__main__":
    main()
