"""nnssl's checkpoints, which nnU-Net's master fine-tunes (`nnUNetv2_train_pretrained`).

Beside the state of the network, under nnU-Net's names, they hold an adaptation plan: the network,
the patch and spacing of the pre-training, and where in the state the encoder, the stem and the
input's convolution stand. nnU-Net takes the encoder and the stem alone from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from macl.models._nnunet_plans import NnunetArchitecture, architecture_of, stated_architecture

ADAPTATION = "nnssl_adaptation_plan"
"""The entry of a checkpoint that holds the plan."""

RESENC_L = NnunetArchitecture(
    residual=True,
    features=(32, 64, 128, 256, 320, 320),
    kernels=((3, 3, 3),) * 6,
    strides=((1, 1, 1), *((2, 2, 2),) * 5),
    convolutions=(1, 3, 4, 6, 6, 6),
    decoder_convolutions=(1,) * 5,
    bias=True,
    norm_eps=1e-5,
    norm_affine=True,
    negative_slope=0.01,
    deep_supervision=False,
)
"""What nnssl means by the name "ResEncL"."""

_CITATION = {
    "type": "Pre-training method",
    "name": "MACL",
    "apa_citations": [
        "Zeng et al. (2026). Multi-level Asymmetric Contrastive Learning for Volumetric Medical "
        "Image Segmentation Pre-training. IEEE Journal of Biomedical and Health Informatics. "
        "https://doi.org/10.1109/JBHI.2026.3669549"
    ],
}


def nnssl_entries(
    architecture: NnunetArchitecture,
    channels: int,
    patch: Sequence[int],
    spacing_mm: Sequence[float] | None,
) -> dict[str, Any]:
    """What makes a checkpoint of nnU-Net's one of nnssl's.

    Args:
        architecture: of the network, in 3D.
        channels: of its input.
        patch: sides of the pre-training's patches, (z, y, x).
        spacing_mm: of its scans, (z, y, x); None: they were not resampled to one.
    """
    stem = "encoder.stem" if architecture.residual else "encoder.stages.0"
    first = "encoder.stem.convs.0" if architecture.residual else "encoder.stages.0.0.convs.0"
    stated = stated_architecture(architecture)
    spacing = None if spacing_mm is None else list(spacing_mm)
    plan = {
        "architecture_plans": {
            "arch_class_name": stated["network_class_name"],
            "arch_kwargs": stated["arch_kwargs"],
            "arch_kwargs_requiring_import": stated["_kw_requires_import"],
        },
        "architecture_kwargs": stated["arch_kwargs"],
        "pretrain_plan": {
            "configurations": {"3d_fullres": {"spacing": spacing, "patch_size": list(patch)}}
        },
        "pretrain_num_input_channels": channels,
        "recommended_downstream_patchsize": list(patch),
        "key_to_encoder": "encoder.stages",
        "key_to_stem": stem,
        "keys_to_in_proj": [f"{first}.conv", f"{first}.all_modules.0"],
        "key_to_lpe": None,
    }
    return {ADAPTATION: plan, "citations": [_CITATION]}


def nnssl_architecture(plan: Any, path: Path) -> NnunetArchitecture | None:
    """The network of an adaptation plan; None: it does not say.

    Raises:
        MaclError: the network is not built here.
    """
    network = plan.get("architecture_plans") if isinstance(plan, Mapping) else None
    if not isinstance(network, Mapping):
        return None
    name = str(network.get("arch_class_name"))
    if name == "ResEncL" and not network.get("arch_kwargs"):
        return RESENC_L
    stated = {"network_class_name": f".{name}", "arch_kwargs": network.get("arch_kwargs")}
    plans = {"configurations": {"3d_fullres": {"architecture": stated}}}
    return architecture_of(plans, "3d_fullres", path)
