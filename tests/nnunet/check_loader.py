"""Check against nnU-Net itself: its planner, its loader and its training take macl's pre-training.

Run in an environment with macl and nnunetv2 (`make check-nnunet`), for plain and residual networks
in 2D and 3D. First with small plans: macl pre-trains the planned network and exports it; nnU-Net's
own `load_pretrained_weights` reads the file into the network that nnU-Net builds; every pre-trained
tensor must be there, under every name. Then, unless `--parts small`, with plans of nnU-Net's own
planners: scans are prepared as nnU-Net did; the same as before; then `nnUNetv2_train` takes a few
steps from a fresh start and as many with `-pretrained_weights`, and macl reads its checkpoint. The
scans are drawn, or the first cases of a folder of the Medical Segmentation Decathlon
(`--decathlon Task04_Hippocampus`).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import textwrap
import time
from contextlib import redirect_stdout
from importlib.metadata import entry_points
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from check_preparation import compare

from fakes.nnunet import LABELS, write_plans
from fakes.scans import affine, anatomy, write_nifti
from fakes.toy_store import write_toy_store
from macl.data.store import Store
from macl.models.conversion.nnunet import nnunet_names
from macl.stages.export import export
from macl.stages.pretrain import pretrain
from macl.utils import checkpoint

DATASET, CASES = "Dataset999_Check", 10
PLANNERS = {"nnUNetPlans": "ExperimentPlanner", "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM"}
PARTS = ("small", "planned")
CONFIGURATIONS = {"2d": (2, "[32,32]"), "3d_fullres": (3, "[32,32,32]")}
TRAINER = """
    import os

    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


    class ShortTrainer(nnUNetTrainer):
        def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
            super().__init__(plans, configuration, fold, dataset_json, device)
            count = int(os.environ["CHECK_ITERATIONS"])
            self.num_epochs, self.num_iterations_per_epoch = 1, count
            self.num_val_iterations_per_epoch = max(1, count // 3)
            self.configuration_manager.configuration["batch_size"] = 2

        def perform_actual_validation(self, save_probabilities=False):
            pass
"""


def call(*words: object) -> str:
    """Run a command in this process, which saves its imports; its failure ends the check."""
    start = time.monotonic()
    argv = [str(word) for word in words]
    (command,) = entry_points(group="console_scripts", name=argv[0])
    printed = io.StringIO()
    try:
        with patch.object(sys, "argv", argv), redirect_stdout(printed):
            command.load()()
    except SystemExit as end:
        if end.code:
            sys.exit(f"{printed.getvalue()[-3000:]}\n{' '.join(argv)} ended with {end.code}")
    shown = " ".join(Path(word).name for word in argv)
    print(f"[{time.monotonic() - start:5.1f} s] {shown}", flush=True)
    return printed.getvalue()


def copy_scans(decathlon: Path, folder: Path) -> Path:
    """A raw data set of nnU-Net's, of the first cases of one of the Decathlon."""
    described = json.loads((decathlon / "dataset.json").read_text())
    images = sorted(path.name for path in (decathlon / "imagesTr").glob("[!.]*.nii.gz"))[:CASES]
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (folder / part).mkdir(parents=True)
        for name in images:
            copied = folder / part / name.replace(".nii.gz", ending)
            shutil.copyfile(decathlon / part / name, copied)
    written = {
        "channel_names": described["modality"],
        "labels": {name: int(value) for value, name in described["labels"].items()},
        "numTraining": len(images),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(written))
    return folder


def write_scans(folder: Path) -> Path:
    """A raw data set of nnU-Net's, large enough for a plan of several stages."""
    for number in range(CASES):
        image, label = anatomy(number, (40, 48, 48))
        write_nifti(folder / "imagesTr" / f"{number:03d}_0000.nii.gz", image, affine((1, 1, 1)))
        write_nifti(folder / "labelsTr" / f"{number:03d}.nii.gz", label, affine((1, 1, 1)))
    described = {
        "channel_names": {"0": "MR"},
        "labels": LABELS,
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


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


def load(plans: Path, configuration: str, run: Path, file: Path) -> None:
    """Let nnU-Net load an export, and compare every tensor with the run's."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    network = planned_network(plans, configuration, 3)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    load_pretrained_weights(network, str(file))
    after = network.state_dict()
    trained = checkpoint.read(run / "weights.safetensors").tensors
    stages = len({key.split(".")[2] for key in after if key.startswith("decoder.stages.")})
    keys = [(key, own) for own in trained for key in nnunet_names(own, stages)]
    assert all(torch.equal(after[key], trained[own]) for key, own in keys)
    assert any(not torch.equal(after[key], before[key]) for key, _ in keys)
    heads = [key for key in after if ".seg_layers." in key]
    assert heads
    assert all(torch.equal(after[key], before[key]) for key in heads)
    halves = [sum(own.startswith(half) for own in trained) for half in ("encoder", "decoder")]
    assert all(halves)
    print(
        f"{type(network).__name__} {configuration}: nnU-Net's network has {len(after)} keys; "
        f"{halves[0]} encoder and {halves[1]} decoder tensors were pre-trained ({len(keys)} keys), "
        f"all equal after loading; {len(heads)} keys of heads are as nnU-Net drew them.",
        flush=True,
    )


def check_small(folder: Path) -> None:
    """Small plans of both networks in 2D and 3D, through the loader."""
    store = write_toy_store(folder / "toy.store", patients=4, slices=16, side=32)
    for kind in ("plain", "residual"):
        residual = kind == "residual"
        plans = write_plans(folder / kind / "nnUNetPlans.json", [4, 6, 6], residual=residual)
        for configuration, (dims, size) in CONFIGURATIONS.items():
            run = folder / kind / configuration
            settings = {
                "dims": dims,
                "backbone": "nnunet",
                "backbone_settings.plans": plans,
                "backbone_settings.configuration": configuration,
                "method_settings.decoder_blocks": 1,
                "training.size": size,
                "training.batch_size": 4,
                "training.steps": 2,
            }
            overrides = [f"{name}={value}" for name, value in settings.items()]
            pretrain(store.path, run, overrides=overrides, device="cpu")
            file = run.with_suffix(".pth")
            export(run, file, to="nnunet", plans=plans, configuration=configuration)
            load(plans, configuration, run, file)


def compare_preparation(store: Path, preprocessed: Path) -> None:
    """Compare a store's cases with what nnU-Net has preprocessed by the same plan."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    opened = Store.open(store)
    written = nnUNetDatasetBlosc2(str(preprocessed))
    differences = []
    for case in opened.cases:
        data, label, *_ = written.load_case(case)
        differences.append(compare(opened, case, np.asarray(data[:]), np.asarray(label[:])))
    largest = max(differences)
    print(
        f"{preprocessed.name}: {len(differences)} cases are as nnU-Net's: labels equal, "
        f"values within {largest:.1e}.",
        flush=True,
    )


def check_planned(folder: Path, name: str, configuration: str) -> None:
    """Pre-train, export, load and train, for one configuration of nnU-Net's own plan."""
    dims, size = CONFIGURATIONS[configuration]
    plans = folder / "preprocessed" / DATASET / f"{name}.json"
    run = folder / f"{name}-{configuration}"
    file, store = folder / f"{run.name}.pth", folder / f"{run.name}.store"
    call(
        "macl", "prepare", folder / "raw" / DATASET, store, "--workers", 1, "--plans", plans,
        "--configuration", configuration,
    )  # fmt: skip
    stated = json.loads(plans.read_text())["configurations"][configuration]
    compare_preparation(store, plans.parent / stated["data_identifier"])
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
    load(plans, configuration, run, file)
    words = (999, configuration, "all", "-p", name, "-tr", "ShortTrainer", "-device", "cpu")
    for start in ((), ("-pretrained_weights", file)):
        printed = call("nnUNetv2_train", *words, *start)
        print(*(line for line in printed.splitlines() if "_loss" in line), sep="\n", flush=True)

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
    print(f"checkpoint_final.pth into macl: {transfer['counts']}, unused {transfer['unused']}")
    assert transfer["counts"].keys() == {"loaded"}
    assert not transfer["unused"]


def set_up(folder: Path, iterations: int) -> None:
    """Tell nnU-Net its folders and the trainer, before it is imported."""
    trainers = folder / "trainers"
    trainers.mkdir()
    (trainers / "short.py").write_text(textwrap.dedent(TRAINER))
    os.environ |= {
        **{f"nnUNet_{part}": str(folder / part) for part in ("raw", "preprocessed", "results")},
        "nnUNet_extTrainer": str(trainers),
        "nnUNet_compile": "f",
        "CHECK_ITERATIONS": str(iterations),
    }


def plan(names: list[str], configurations: list[str]) -> None:
    """Plan with each planner; all of them share what is preprocessed for the first."""
    os.environ |= {"nnUNet_n_proc_DA": "1"}
    first, *more = names
    call(
        "nnUNetv2_plan_and_preprocess", "-d", 999, "-pl", PLANNERS[first], "-np", 1, "-npfp", 1,
        "-c", *configurations,
    )  # fmt: skip
    for name in more:
        call("nnUNetv2_plan_experiment", "-d", 999, "-pl", PLANNERS[name])
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # no processes in training; the planner takes no 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--plans", nargs="*", default=list(PLANNERS), choices=list(PLANNERS))
    parser.add_argument(
        "--configurations", nargs="*", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS)
    )
    parser.add_argument("--iterations", type=int, default=10, help="of each training of nnU-Net's")
    parser.add_argument("--decathlon", type=Path, help="a folder such as Task04_Hippocampus")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        set_up(folder, chosen.iterations)
        if "small" in chosen.parts:
            check_small(folder / "small")
        if "planned" in chosen.parts:
            raw = folder / "raw" / DATASET
            if chosen.decathlon:
                copy_scans(chosen.decathlon, raw)
            else:
                write_scans(raw)
            plan(chosen.plans, chosen.configurations)
            for plans in chosen.plans:
                for configuration in chosen.configurations:
                    check_planned(folder, plans, configuration)
    print("nnU-Net takes what macl exports, and macl what nnU-Net has trained.")


if __name__ == "__main__":
    main()
