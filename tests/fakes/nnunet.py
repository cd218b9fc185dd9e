"""nnU-Net's raw layout, version 2, in miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fakes.scans import anatomy, write_itk, write_nifti

LABELS = {"background": 0, "ring": 1, "disc": 2}


def write(
    folder: Path,
    cases: int = 3,
    test: int = 1,
    channels: tuple[str, ...] = ("CT",),
    ending: str = ".nii.gz",
    **more: Any,
) -> Path:
    """Write `cases` labelled and `test` unlabelled cases; `more` goes into `dataset.json`."""
    put = write_nifti if ending.startswith(".nii") else write_itk
    for number in range(cases + test):
        part = "Tr" if number < cases else "Ts"
        image, label = anatomy(number)
        for channel in range(len(channels)):
            put(
                folder / f"images{part}" / f"toy_{number:03d}_{channel:04d}{ending}",
                image + 10 * channel,
            )
        if number < cases:
            put(folder / "labelsTr" / f"toy_{number:03d}{ending}", label)
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ending,
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


# ---------------------------------------------------------------- plans


def architecture(
    dims: int, features: list[int], *, residual: bool = False, strides: Any = None
) -> dict[str, Any]:
    """The `architecture` block of a plan; every stage but the first halves all axes, unless strides
    say otherwise."""
    count = len(features)
    kind = ("ResidualEncoderUNet", "n_blocks_per_stage") if residual else ("PlainConvUNet", "")
    torch_nn = "torch.nn.modules"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind[0]}",
        "arch_kwargs": {
            "n_stages": count,
            "features_per_stage": features,
            "conv_op": f"{torch_nn}.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims for _ in features],
            "strides": strides or [[1] * dims, *([2] * dims for _ in features[1:])],
            kind[1] or "n_conv_per_stage": [1, 3, 4, 6, 6, 6][:count] if residual else [2] * count,
            "n_conv_per_stage_decoder": [1 if residual else 2] * (count - 1),
            "conv_bias": True,
            "norm_op": f"{torch_nn}.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plans(features: list[int], *, residual: bool = False) -> dict[str, Any]:
    """A plan of four configurations; the volumes' first stride leaves the first axis."""
    strides = [[1, 1, 1], [1, 2, 2], *([2, 2, 2] for _ in features[2:])]
    slices = architecture(2, features, residual=residual)
    volumes = architecture(3, features, residual=residual, strides=strides)
    return {
        "dataset_name": "Dataset004_Toy",
        "plans_name": "nnUNetPlans",
        "configurations": {
            "2d": {"patch_size": [32, 32], "architecture": slices},
            "3d_lowres": {"patch_size": [16, 32, 32], "architecture": volumes},
            "3d_fullres": {"inherits_from": "3d_lowres", "patch_size": [16, 32, 32]},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


def write_plans(path: Path, features: list[int], **options: Any) -> Path:
    """Write a plan."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plans(features, **options)))
    return path


def scan_plans(
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0),
    schemes: tuple[str, ...] = ("ZScoreNormalization",),
    masked: bool = False,
    axes: tuple[int, int, int] = (0, 1, 2),
    reader: str = "SimpleITKIO",
    **more: Any,
) -> dict[str, Any]:
    """A plan that says how scans are prepared, as nnU-Net 2.8.1 writes it; `more` replaces entries
    of its one configuration."""
    resampling = {
        f"resampling_fn_{part}": "resample_data_or_seg_to_shape" for part in ("data", "seg")
    }
    orders = {"data": 3, "seg": 1}
    options = {
        f"resampling_fn_{part}_kwargs": {
            "is_seg": part == "seg",
            "order": order,
            "order_z": 0,
            "force_separate_z": None,
        }
        for part, order in orders.items()
    }
    return {
        "dataset_name": "Dataset004_Toy",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": list(axes),
        "configurations": {
            "2d" if len(spacing_mm) == 2 else "3d_fullres": {
                "preprocessor_name": "DefaultPreprocessor",
                "spacing": list(spacing_mm),
                "normalization_schemes": list(schemes),
                "use_mask_for_norm": [masked] * len(schemes),
                **resampling,
                **options,
                **more,
            }
        },
        "foreground_intensity_properties_per_channel": {
            str(number): {
                "max": 400.0,
                "mean": 100.0,
                "median": 90.0,
                "min": -200.0,
                "percentile_00_5": 20.0,
                "percentile_99_5": 150.0,
                "std": 40.0,
            }
            for number in range(len(schemes))
        },
    }


def write_scan_plans(path: Path, *arguments: Any, **options: Any) -> Path:
    """Write a plan that says how scans are prepared."""
    path.write_text(json.dumps(scan_plans(*arguments, **options)))
    return path
