"""What an nnU-Net plan says of how its scans are prepared: input that may be broken or made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from macl.config.mistakes import validate
from macl.config.settings import ScanPlan
from macl.models._nnunet_plans import configuration_of
from macl.utils.errors import MaclError, listed
from macl.utils.files import read_json
from macl.utils.text import shown

REORIENTS = {
    "SimpleITKIO": False,
    "NibabelIO": False,
    "NaturalImage2DIO": False,
    "NibabelIOWithReorient": True,
}
"""nnU-Net's reader → whether it turns scans to right-anterior-superior axes."""

_RESAMPLING = {"order_z": 0, "force_separate_z": None, "separate_z_anisotropy_threshold": 3}
"""Options of nnU-Net's resampling beside the order, and their usual values."""


def read_scan_plan(path: Path, configuration: str, channels: Sequence[str] = ()) -> ScanPlan:
    """Read how a configuration of a plan prepares scans.

    Args:
        path: an `nnUNetPlans.json`.
        configuration: its name, such as "3d_fullres".
        channels: of the scans, which the plan must fit; none: not known.

    Raises:
        MaclError: the file or the configuration is missing, it does not fit the channels, or it
            prepares scans in a way that is not built here.
    """
    plans = read_json(path, "an nnU-Net plan")
    stated = configuration_of(plans, configuration, path)
    try:
        values = {"configuration": configuration, **_read(plans, stated)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise MaclError(
            f"{path} cannot prepare scans as {configuration} ({reason}): plan again with nnU-Net "
            "2.4 or later, or prepare without --plans."
        ) from None
    plan = validate(ScanPlan, values, where=str(path))
    if channels and len(plan.channels) != len(channels):
        raise MaclError(
            f"{path} plans for {len(plan.channels)} image channels, but these scans have "
            f"{len(channels)} ({listed(channels)}): name the plan of this data set."
        )
    return plan


def _read(plans: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `ScanPlan`; KeyError, TypeError or ValueError names what is not known."""
    reader = _known(plans, "image_reader_writer", tuple(REORIENTS))
    _known(stated, "preprocessor_name", ("DefaultPreprocessor",))
    schemes, masks = stated["normalization_schemes"], stated["use_mask_for_norm"]
    if not isinstance(schemes, list) or not isinstance(masks, list) or len(schemes) != len(masks):
        raise ValueError("normalization_schemes and use_mask_for_norm are not lists of one length")
    intensities = plans.get("foreground_intensity_properties_per_channel")
    image_order, separate = _resampling(stated, "data")
    label_order, separate_label = _resampling(stated, "seg")
    if separate != separate_label:
        raise ValueError("images and labels differ in force_separate_z")
    return {
        "axes": plans["transpose_forward"],
        "reoriented": REORIENTS[reader],
        "spacing_mm": stated["spacing"],
        "channels": [
            _channel(scheme, mask, intensities, number)
            for number, (scheme, mask) in enumerate(zip(schemes, masks, strict=True))
        ],
        "image_order": image_order,
        "label_order": label_order,
        "separate_coarse_axis": separate,
    }


def _known(stated: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str:
    value = stated[name]
    if value not in known:
        raise ValueError(f"{name} {shown(value)} is not built here")
    return value


def _channel(scheme: Any, mask: Any, intensities: Any, number: int) -> dict[str, Any]:
    channel = {"scheme": scheme, "masked": bool(mask) and scheme == "ZScoreNormalization"}
    if scheme != "CTNormalization":
        return channel
    measured = intensities.get(str(number)) if isinstance(intensities, Mapping) else None
    if not isinstance(measured, Mapping):
        raise ValueError(f"the foreground intensities of channel {number} are missing")
    return {
        **channel,
        "low": measured["percentile_00_5"],
        "high": measured["percentile_99_5"],
        "mean": measured["mean"],
        "deviation": measured["std"],
    }


def _resampling(stated: Mapping[str, Any], part: str) -> tuple[Any, Any]:
    """The order of the splines, and force_separate_z."""
    _known(stated, f"resampling_fn_{part}", ("resample_data_or_seg_to_shape",))
    options = dict(stated[f"resampling_fn_{part}_kwargs"])
    order, _ = options.pop("order"), options.pop("is_seg", None)
    values = {**_RESAMPLING, **options}
    separate = values["force_separate_z"]
    if values != {**_RESAMPLING, "force_separate_z": separate}:
        raise ValueError(f"resampling_fn_{part}_kwargs {shown(options)} is not built here")
    return order, separate
