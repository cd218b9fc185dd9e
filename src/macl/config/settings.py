"""Typed, frozen settings: the defaults, over them a recipe, over it `--set`.

Every run saves its resolved settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError


class Settings(BaseModel):
    """Base of all settings: frozen; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PluginSettings(Settings):
    """Base of the settings of a method or a backbone."""


NormalisationScheme = Literal[
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SplineOrder = Annotated[int, Field(ge=0, le=5)]


class PlannedChannel(Settings):
    """How an nnU-Net plan normalises a channel; low to deviation are for CTNormalization."""

    scheme: NormalisationScheme
    masked: bool = Field(
        default=False, description="ZScoreNormalization: of the region that is not 0 alone"
    )
    low: Finite = Field(default=0.0, description="0.5th percentile of the plan's foreground")
    high: Finite = Field(default=0.0, description="its 99.5th percentile")
    mean: Finite = 0.0
    deviation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class ScanPlan(Settings):
    """How a configuration of an nnU-Net plan prepares scans; it stands in for the plan's file."""

    configuration: str
    axes: tuple[int, int, int] = Field(
        description="which axis of the scan's (z, y, x) comes first, second and third"
    )
    reoriented: bool = Field(
        default=False, description="the scan's axes are turned to right-anterior-superior first"
    )
    spacing_mm: tuple[Millimetres, Millimetres] | tuple[Millimetres, Millimetres, Millimetres] = (
        Field(description="along the last two or all three of these axes")
    )
    channels: tuple[PlannedChannel, ...] = Field(min_length=1)
    image_order: SplineOrder = Field(default=3, description="of the splines for images")
    label_order: SplineOrder = Field(default=1, description="of the splines for labels")
    separate_coarse_axis: bool | None = Field(
        default=None,
        description="resample the coarsest axis by nearest neighbour; none: where it stands out",
    )

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        if sorted(self.axes) != [0, 1, 2]:
            raise ValueError("axes names each of 0, 1 and 2 once")
        return self

    def __str__(self) -> str:
        spacing = " × ".join(f"{mm:.4g}" for mm in self.spacing_mm)
        schemes = ", ".join(dict.fromkeys(channel.scheme for channel in self.channels))
        return f"nnU-Net's {self.configuration} ({spacing} mm, {schemes})"


class PrepareSettings(Settings):
    """How scans become a store; kept in the store and in each run, for `predict` to do the same."""

    plane: Literal["auto", "axial", "coronal", "sagittal"] = Field(
        default="auto",
        description="plane of the slices; auto: across the coarsest spacing, axial where none "
        "stands out",
    )
    spacing_mm: float | tuple[float, float, float] | Literal["median"] | None = Field(
        default=None,
        description="resample to this spacing: one number (in plane), three (z, y, x), or median "
        "(three numbers, by nnU-Net's rule; a store holds the numbers); none: as scanned",
    )
    normalisation: Literal["clip_zscore", "zscore", "planned"] | None = Field(
        default=None, description="none: as the reader says; planned: goes with plan"
    )
    window: Literal["soft_tissue", "lung", "bone", "brain", "liver"] | None = Field(
        default=None,
        description="CT only: clip to this window in Hounsfield units instead of percentiles",
    )
    frames: bool = Field(
        default=False, description="take the fourth axis of a file as time: each frame is a case"
    )
    keep_identity: bool = Field(
        default=False,
        description="keep names of folders and DICOM ids, no hashes",
    )
    plan: ScanPlan | None = Field(
        default=None,
        description="prepare as an nnU-Net plan does, in place of plane, spacing_mm, normalisation "
        "and window",
    )

    @field_validator("spacing_mm", mode="before")
    @classmethod
    def _parse_spacing(cls, spacing: Any) -> Any:
        """Accept the command line's "1.5" and "5,1.5,1.5" too; any mistake gets one message."""
        if spacing is None or spacing == "median":
            return spacing
        parts = spacing.split(",") if isinstance(spacing, str) else spacing
        try:
            numbers = [*map(float, parts if isinstance(parts, list | tuple) else (parts,))]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) not in (1, 3) or not all(0 < number < math.inf for number in numbers):
            raise PydanticCustomError(
                "spacing",
                "give one number (in plane), three as z,y,x, or median; in millimetres, above 0",
            )
        return tuple(numbers) if len(numbers) == 3 else numbers[0]

    @model_validator(mode="after")
    def _check_plan(self) -> Self:
        """A plan says all of how a scan looks; nothing else may."""
        if self.plan is None and self.normalisation == "planned":
            raise ValueError("normalisation=planned goes with a plan")
        others = (self.plane != "auto", self.spacing_mm is not None, self.window is not None)
        if self.plan and (any(others) or self.normalisation not in (None, "planned")):
            raise ValueError(
                "a plan says how scans lie, their spacing and their normalisation: leave out "
                "plane, spacing_mm, normalisation and window"
            )
        return self


Stage = Literal["pretrain", "finetune", "selftrain"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PatchSide = Annotated[int, Field(gt=0)]


class TrainingSettings(Settings):
    """The training loop: how long, how large, how fast."""

    epochs: int = Field(default=100, gt=0, description="length of the run, unless steps is set")
    steps: int | None = Field(
        default=None,
        gt=0,
        description="length of the run in batches, however many patches an epoch has",
    )
    batch_size: int = Field(default=16, gt=0, description="patches per step, over all processes")
    size: Literal["auto"] | PatchSide | tuple[PatchSide, ...] = Field(
        default=256,
        description="sides of a patch in voxels, to which images are cropped or zero-padded: one "
        "number for all axes, one per axis (y, x in 2D; z, y, x in 3D), or auto: chosen from the "
        "sizes of the store's cases",
    )
    optimiser: Literal["sgd", "adam", "adamw"] = Field(
        default="sgd", description="turns gradients into steps"
    )
    learning_rate: float = Field(
        default=0.1, gt=0, description="the highest, after the warm-up, from which a cosine falls"
    )
    learning_rate_floor: float = Field(default=0.0, ge=0, description="where the cosine ends")
    warmup_share: float = Field(
        default=0.0, ge=0, lt=1, description="share of the run that rises before the cosine"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD only")
    weight_decay: float = Field(
        default=1e-5, ge=0, description="pull of the weights towards 0 at every step"
    )
    gradient_clip: float | None = Field(default=None, gt=0, description="largest gradient norm")
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="decay of the moving average of the weights"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="number format of most operations; auto: bf16 on GPUs and processors that have "
        "it, fp16 on older GPUs, fp32 elsewhere",
    )
    compile: Literal["auto", "off", "default", "reduce-overhead"] = Field(
        default="auto",
        description="mode of torch.compile for the step; auto: default for long runs on a GPU, "
        "else off",
    )
    gather_negatives: bool = Field(
        default=True,
        description="several processes: contrast patches over all processes, not within each",
    )
    log_every_steps: int = Field(default=20, gt=0, description="how often the log gets a line")
    checkpoint_every_steps: int | None = Field(
        default=None,
        gt=0,
        description="how often the run's state is saved, besides every two minutes",
    )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Number of batches in the run."""
        return self.steps or self.epochs * steps_per_epoch


class SpatialSettings(Settings):
    """Random geometry of a view; probabilities are per patch."""

    mirror: float = Field(default=0.5, ge=0, le=1, description="probability, for each axis")
    deform: float = Field(
        default=0.67, ge=0, le=1, description="probability of all that follows, together"
    )
    rotation_degrees: float = Field(
        default=180.0, ge=0, le=180, description="in the plane of the slices, either way"
    )
    tilt_degrees: float = Field(
        default=30.0,
        ge=0,
        le=180,
        description="3D: out of that plane, about both of its axes, either way; not for thin "
        "patches, whose longest side is more than three times their number of slices",
    )
    scale: tuple[float, float] = Field(
        default=(0.7, 1.3), description="smallest and largest magnification"
    )
    shear_degrees: float = Field(default=0.0, ge=0, lt=90, description="either way, of each axis")
    translation: float = Field(
        default=0.0, ge=0, le=1, description="either way, as a fraction of the side"
    )
    elastic_alpha: tuple[float, float] = Field(
        default=(100.0, 350.0),
        description="strength, the same in 3D as in a slice; 0, 0 turns it off",
    )
    elastic_sigma: tuple[float, float] = Field(
        default=(14.0, 17.0), description="smoothness in voxels"
    )
    elastic_reference_side: int | None = Field(
        default=None,
        gt=0,
        description="strength and smoothness are meant for slices with this many voxels a side, "
        "and are scaled to the patch; none: they are voxels of the patch, whatever its size",
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        default="bicubic", description="of slices; volumes are interpolated trilinearly"
    )


class IntensitySettings(Settings):
    """Probabilities, per patch, of random changes of intensity."""

    brightness: float = Field(
        default=0.0, ge=0, le=1, description="probability of a factor, 0.75 to 1.25"
    )
    contrast: float = Field(
        default=0.0, ge=0, le=1, description="probability of a factor about the mean, 0.75 to 1.25"
    )
    gamma: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability of a gamma curve, which lifts or lowers the middle",
    )
    noise: float = Field(default=0.0, ge=0, le=1, description="probability of Gaussian noise")
    blur: float = Field(default=0.0, ge=0, le=1, description="probability of a Gaussian blur")
    low_resolution: float = Field(
        default=0.0, ge=0, le=1, description="probability of scaling down and up again"
    )


class NetworkRunSettings(Settings):
    """What pre-training and fine-tuning share: a network, its dimensions and the training loop."""

    stage: ClassVar[Stage]

    dims: Literal[2, 3] = Field(
        default=2, description="2: patches are slices; 3: patches are parts of volumes"
    )
    backbone: str = Field(default="unet", description="the network's name")
    backbone_settings: SerializeAsAny[PluginSettings] | dict[str, Any] = Field(
        default_factory=dict, description="settings of the backbone"
    )
    anatomy: Literal["auto", "oriented", "free"] = Field(
        default="free",
        description="oriented: views keep the anatomy's orientation, with no mirrors but along "
        "mirror_axes and no rotation beyond 30°; free: views as they are set; auto: oriented if "
        "the orientation of every scan in the store is known",
    )
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def _size_has_dims(self) -> Self:
        size = self.training.size
        if isinstance(size, tuple) and len(size) != self.dims:
            other = f", or --set dims={len(size)}" if len(size) in (2, 3) else ""
            raise ValueError(
                f"training.size has {len(size)} sides, but dims is {self.dims}: give "
                f"{self.dims} sides{other}"
            )
        return self

    @property
    def patch(self) -> tuple[int, ...]:
        """Sides of a patch in voxels, `dims` of them; ValueError while the size is "auto"."""
        size = self.training.size
        if size == "auto":
            raise ValueError("training.size is not resolved yet.")
        return (size,) * self.dims if isinstance(size, int) else size

    def with_patch(self, patch: tuple[int, ...]) -> Self:
        """The same settings for a patch of these sides."""
        size = patch[0] if len({*patch}) == 1 else patch
        return self.model_copy(update={"training": self.training.model_copy(update={"size": size})})


class PretrainSettings(NetworkRunSettings):
    """All that decides a pre-training run, besides store, split, seed and device."""

    stage = "pretrain"

    method: str = Field(default="macl", description="the method's name")
    method_settings: SerializeAsAny[PluginSettings] | dict[str, Any] = Field(
        default_factory=dict, description="settings of the method"
    )
    minimum_content: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="2D: leave out slices of which a smaller share is not air",
    )
    patients_per_position: int = Field(
        default=1,
        gt=0,
        description="K: a batch holds batch_size / K positions with patches of K patients around "
        "each; 1: patches are drawn independently, as for all methods that contrast no positions",
    )
    position_jitter: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="how far a patch may lie from the position of its group, as a share of the "
        "volume",
    )


class AugmentationSettings(Settings):
    """Random changes of a patch: its geometry and its intensity."""

    spatial: SpatialSettings = SpatialSettings()
    intensity: IntensitySettings = IntensitySettings()


ArrayAxis = Literal["slice", "row", "column"]
AnatomicalAxis = Literal["left-right", "anterior-posterior", "inferior-superior"]


class FinetuneSettings(NetworkRunSettings):
    """All that decides a fine-tuning run, besides store, split, labels, init, seed and device."""

    stage = "finetune"

    loss: Literal["cross_entropy", "cross_entropy_dice"] = Field(
        default="cross_entropy_dice",
        description="what compares prediction and label; cross_entropy_dice: the sum of both",
    )
    deep_supervision: bool | None = Field(
        default=None,
        description="compare the decoder's coarser maps too, with the weights 1, 1/2, 1/4, … from "
        "the finest on, divided by their sum; none: as the backbone says, on for nnunet",
    )
    augmentation: AugmentationSettings = AugmentationSettings()
    mirror_axes: Literal["auto"] | tuple[ArrayAxis | AnatomicalAxis, ...] = Field(
        default="auto",
        description="axes mirrored in training and averaged over in prediction, by the array's "
        "names or the anatomy's; auto: none of oriented anatomy, else all of the patch but those "
        "that swap a left and a right class",
    )
    mirror_averaging: bool = Field(
        default=True, description="average the prediction over the mirror axes"
    )
    foreground_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of a batch's patches that must show a class, each class equally often",
    )


class SelftrainSettings(FinetuneSettings):
    """All that decides a self-training run, besides store, split, labels, init, teacher, seed and
    device."""

    stage = "selftrain"

    unlabelled_batch_size: int | None = Field(
        default=None,
        gt=0,
        description="unlabelled patches per step, beside training.batch_size labelled ones; none: "
        "as many",
    )
    unlabelled_weight: float = Field(
        default=1.0, ge=0, description="of the loss on unlabelled patches, once it is ramped up"
    )
    ramp: float = Field(
        default=0.3, ge=0, le=1, description="share of the run in which that weight rises"
    )
    teacher_decay: float = Field(
        default=0.99, gt=0, lt=1, description="decay of the moving average that the teacher is"
    )
    confidence: float = Field(
        default=0.9, ge=0, lt=1, description="least confidence of the teacher in what it teaches"
    )
    adapt_confidence: bool = Field(
        default=False,
        description="lower that limit for classes of which the teacher is less sure on average",
    )
    cutmix: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="probability that a box of an unlabelled patch shows another one",
    )

    @model_validator(mode="after")
    def _one_average(self) -> Self:
        if self.training.ema_decay is not None:
            raise ValueError(
                "the teacher is a moving average already: leave training.ema_decay out and set "
                "teacher_decay"
            )
        return self

    @property
    def patches_per_step(self) -> tuple[int, int]:
        """Labelled and unlabelled patches of a batch, over all processes."""
        labelled = self.training.batch_size
        return labelled, self.unlabelled_batch_size or labelled


def setting_names(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The full names of all settings, such as "training.epochs"."""
    for name, field in kind.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_names(field.annotation, f"{prefix}{name}.")
