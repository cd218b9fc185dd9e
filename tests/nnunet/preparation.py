"""Do `prepare --plans` and nnU-Net's own preprocessor give the same voxels?

Scans of many kinds are prepared by both: every normalisation, anisotropic and isotropic spacings,
moved axes, empty borders, holes.
"""

from __future__ import annotations

import io
import json
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from fakes.nnunet import LABELS, scan_plans
from fakes.scans import anatomy, write_nifti
from macl.data.store import Store
from macl.preprocessing.normalisation import normalise
from macl.stages.prepare import prepare

TOLERANCE = 1e-4
MR, CT = "ZScoreNormalization", "CTNormalization"
KINDS: dict[str, dict[str, Any]] = {
    "isotropic MR": {"spacing_mm": (1.2, 0.9, 0.9)},
    "skull-stripped MR": {"spacing_mm": (1.0, 1.3, 0.8), "masked": True},
    "anisotropic CT": {"spacing_mm": (3.0, 0.8, 0.8), "schemes": (CT,), "own_mm": (5.0, 0.7, 0.7)},
    "anisotropic MR": {"spacing_mm": (5.0, 1.5, 1.5), "own_mm": (4.0, 1.1, 1.1)},
    "coarse across x": {"spacing_mm": (1.0, 1.0, 4.0), "own_mm": (1.0, 1.0, 5.0)},
    "coarse axis first": {
        "spacing_mm": (4.0, 1.2, 1.2), "own_mm": (1.0, 1.0, 5.0), "axes": (2, 0, 1),
    },
    "made anisotropic": {"spacing_mm": (4.0, 1.0, 1.0)},
    "two coarse axes": {"spacing_mm": (1.0, 3.0, 3.0), "own_mm": (1.0, 4.0, 4.0)},
    "as scanned": {"spacing_mm": (1.0, 1.0, 1.0)},
    "slices": {"spacing_mm": (0.7, 0.7), "own_mm": (4.0, 1.1, 1.1)},
    "isotropic slices": {"spacing_mm": (1.3, 1.3)},
    "four channels": {
        "spacing_mm": (1.5, 0.7, 0.9),
        "schemes": (
            "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization", MR,
        ),
    },
    "two channels, masked": {"spacing_mm": (1.5, 0.7, 0.9), "schemes": (MR, CT), "masked": True},
    "turned": {"spacing_mm": (1.1, 0.9, 1.0), "reader": "NibabelIOWithReorient"},
}  # fmt: skip


def compare(store: Store, name: str, data: np.ndarray, label: np.ndarray) -> float:
    """How far a case's values are from what nnU-Net made of it, (C, Z, Y, X); its label, of as many
    voxels, must be the same."""
    image = normalise(store.read(name), store.case(name).normalisation)
    assert image.shape == data.shape, (name, image.shape, data.shape)
    difference = float(np.abs(image - data).max())
    assert difference < TOLERANCE, (name, difference)
    own = store.read(name, "label")
    other = np.maximum(label.reshape(own.shape), 0)
    unequal = int((own != other).sum())
    assert unequal == 0, (name, unequal, own.size)
    return difference


def write_raw(
    folder: Path, channels: int, own_mm: tuple[float, float, float], turned: bool
) -> None:
    """Two scans with an empty border that leaves an irregular body with a hole."""
    z_mm, y_mm, x_mm = own_mm
    matrix = np.diag([-x_mm, -y_mm, z_mm, 1.0])
    if turned:
        matrix = np.array([[0, y_mm, 0, 3], [0, 0, -z_mm, 4], [x_mm, 0, 0, 5], [0, 0, 0, 1.0]])
    for number in range(2):
        image, label = anatomy(number, (14, 31, 37))
        z, y, x = np.indices(image.shape)
        outside = (np.hypot(y - 16, x - 19) > 14) | (z < 2) | (z == 13)
        outside |= (abs(z - 7) < 2) & (np.hypot(y - 16, x - 14) < 3)
        for channel in range(channels):
            values = np.where(outside, 0, (image + 13 * channel).clip(1, 250)).astype(np.int16)
            path = folder / "imagesTr" / f"case{number}_{channel:04d}.nii.gz"
            write_nifti(path, values, matrix)
        label[outside] = 0
        write_nifti(folder / "labelsTr" / f"case{number}.nii.gz", label, matrix)
    described = {
        "channel_names": {str(channel): f"MR{channel}" for channel in range(channels)},
        "labels": LABELS,
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(described))


def compare_kind(folder: Path, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Prepare scans of a kind with both programs; what a row of the result shows."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    own_mm = options.pop("own_mm", (1.0, 1.0, 1.0))
    raw = folder / "Dataset998_Kinds"
    plans = scan_plans(**options)
    turned = plans["image_reader_writer"] == "NibabelIOWithReorient"
    (name,) = plans["configurations"]
    write_raw(raw, len(options.get("schemes", (MR,))), own_mm, turned)
    path = folder / "nnUNetPlans.json"
    path.write_text(json.dumps(plans))
    prepare(raw, folder / "store", plans=path, configuration=name, workers=1)
    store = Store.open(folder / "store")

    plans["configurations"][name]["architecture"] = {}
    manager = PlansManager({**plans, "label_manager": "LabelManager"})
    described = json.loads((raw / "dataset.json").read_text())
    differences = []
    for case in store.cases:
        images = sorted(map(str, (raw / "imagesTr").glob(f"{case}_*")))
        data, label, _ = DefaultPreprocessor(verbose=False).run_case(
            images,
            str(raw / "labelsTr" / f"{case}.nii.gz"),
            manager,
            manager.get_configuration(name),
            described,
        )
        differences.append(compare(store, case, data, label))
    size = " × ".join(map(str, next(iter(store.cases.values())).size))
    return {"scans": kind, "cases": len(differences), "voxels": size, "within": max(differences)}


def compare_kinds() -> list[dict[str, Any]]:
    """Prepare scans of every kind with both programs; one row each."""
    rows = []
    for kind, options in KINDS.items():
        with tempfile.TemporaryDirectory() as name, redirect_stderr(io.StringIO()):
            rows.append(compare_kind(Path(name), kind, dict(options)))
        print(f"Prepared as nnU-Net does: {kind}", flush=True)
    return rows
