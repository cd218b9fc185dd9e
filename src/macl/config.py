"""Typed, frozen settings: method's defaults < recipe < `--set`; what was resolved is saved with every run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import ErrorDetails

from macl.utils.errors import MaclError, did_you_mean


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PluginSettings(Settings):
    """Base of the settings of a method or a backbone."""


class PrepareSettings(Settings):
    """How scans become slices. Saved in the store and in every run, so that `predict` does the same."""

    plane: Literal["auto", "axial", "coronal", "sagittal"] = Field(
        default="auto",
        description="slices lie in this plane; auto: across the coarsest spacing, axial where none stands out",
    )
    spacing_mm: float | None = Field(
        default=None, gt=0, description="in-plane spacing to resample to; none: as scanned"
    )
    normalisation: Literal["clip_zscore", "zscore"] | None = Field(default=None, description="none: as the reader says")
    window: Literal["soft_tissue", "lung", "bone", "brain", "liver"] | None = Field(
        default=None, description="CT only: clip to this window in Hounsfield units instead of percentiles"
    )
    frames: bool = Field(
        default=False, description="the fourth axis of a file is time, and every moment a case of its own"
    )
    keep_identity: bool = Field(default=False, description="keep DICOM patient ids instead of hashing them")


PatchSide = Annotated[int, Field(gt=0)]


class TrainingSettings(Settings):
    """The loop: how long, how large, how fast."""

    epochs: int = Field(default=100, gt=0)
    batch_size: int = Field(default=16, gt=0)
    size: PatchSide | tuple[PatchSide, ...] = Field(
        default=256,
        description="sides of a patch in voxels, cropped or zero-padded to them: one number for all axes, or one for "
        "each (y, x in 2D; z, y, x in 3D)",
    )
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0)
    learning_rate_floor: float = Field(default=0.0, ge=0, description="where the cosine ends")
    warmup_epochs: float = Field(default=0.0, ge=0, description="linear rise before the cosine")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD only")
    weight_decay: float = Field(default=1e-5, ge=0)
    gradient_clip: float | None = Field(default=None, gt=0, description="largest gradient norm")
    ema_decay: float | None = Field(default=None, gt=0, lt=1, description="moving average of the weights")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "off", "default", "reduce-overhead"] = Field(
        default="auto", description="torch.compile's mode for the step; auto: default for long runs on a GPU, else off"
    )
    gather_negatives: bool = Field(
        default=True,
        description="several processes: contrast slices with those of all, not with those of their own alone",
    )
    log_every_steps: int = Field(default=20, gt=0)
    checkpoint_every_steps: int = Field(default=500, gt=0)


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
        description="3D: out of that plane, about both of its axes, either way; not for thin patches, "
        "whose longest side is more than three times their number of slices",
    )
    scale: tuple[float, float] = (0.7, 1.3)
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
    interpolation: Literal["bilinear", "bicubic"] = Field(
        default="bicubic", description="of slices; volumes are interpolated trilinearly"
    )


class IntensitySettings(Settings):
    """Probabilities, per patch, of random changes of intensity."""

    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, le=1)
    gamma: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0, le=1)
    blur: float = Field(default=0.0, ge=0, le=1)
    low_resolution: float = Field(default=0.0, ge=0, le=1)


class NetworkRunSettings(Settings):
    """What pre-training and fine-tuning share: a network, its dimensions and the loop."""

    dims: Literal[2, 3] = Field(default=2, description="2: patches are slices; 3: patches are parts of volumes")
    backbone: str = "unet"
    backbone_settings: SerializeAsAny[PluginSettings] | dict[str, Any] = Field(default_factory=dict)
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def _size_has_dims(self) -> Self:
        size = self.training.size
        if not isinstance(size, int) and len(size) != self.dims:
            raise ValueError(f"training.size names {len(size)} sides, but dims is {self.dims}")
        return self

    @property
    def patch(self) -> tuple[int, ...]:
        """Sides of a patch in voxels, `dims` of them."""
        size = self.training.size
        return (size,) * self.dims if isinstance(size, int) else size

    def with_patch(self, patch: tuple[int, ...]) -> Self:
        """The same settings for a patch of other sides."""
        size = patch[0] if len({*patch}) == 1 else patch
        return self.model_copy(update={"training": self.training.model_copy(update={"size": size})})


class PretrainSettings(NetworkRunSettings):
    """Everything a pre-training run depends on, besides its store, split, seed and device."""

    method: str = "macl"
    method_settings: SerializeAsAny[PluginSettings] | dict[str, Any] = Field(default_factory=dict)
    minimum_content: float = Field(
        default=0.0, ge=0, le=1, description="pass over slices of which a smaller share is not air; 0: none"
    )
    patients_per_position: int = Field(
        default=1,
        gt=0,
        description="K: a batch shows so many patients around each of its positions, batch_size / K of them; 1: patches "
        "are drawn apart from each other",
    )
    position_jitter: float = Field(
        default=0.05, ge=0, lt=1, description="how far a patch may lie from its group's position, as a share of the volume"
    )


class AugmentationSettings(Settings):
    """Random changes of a patch: its geometry and its intensity."""

    spatial: SpatialSettings = SpatialSettings()
    intensity: IntensitySettings = IntensitySettings()


ArrayAxis = Literal["slice", "row", "column"]
AnatomicalAxis = Literal["left-right", "anterior-posterior", "inferior-superior"]


class FinetuneSettings(NetworkRunSettings):
    """Everything a fine-tuning run depends on, besides its store, split, labels, initial weights, seed and device."""

    loss: Literal["cross_entropy", "cross_entropy_dice"] = "cross_entropy_dice"
    augmentation: AugmentationSettings = AugmentationSettings()
    mirror_axes: Literal["auto"] | tuple[ArrayAxis | AnatomicalAxis, ...] = Field(
        default="auto",
        description="axes mirrored in training and averaged over in prediction, by the array's names "
        "or the anatomy's; auto: all of the patch, but none that would swap a left and a right class",
    )
    mirror_averaging: bool = Field(default=True, description="average the prediction over the mirror axes")
    foreground_share: float = Field(
        default=0.0, ge=0, le=1, description="share of a batch's patches that must show a class, each class as often"
    )


S = TypeVar("S", bound=Settings)
PROBLEMS_NAMED = 4


def resolve(kind: type[S], recipe: Mapping[str, Any], overrides: Iterable[str] = ()) -> S:
    """Settings of a run: the defaults of `kind`, over them the recipe, over them `key.sub=value` overrides.

    Raises:
        MaclError: a name that does not exist or a value that does not fit, each named.
    """
    merged = json.loads(json.dumps(recipe))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise MaclError(f"--set takes key=value, such as training.epochs=50, not {override!r}.")
        *path, last = key.strip().split(".")
        place = merged
        for step in path:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise MaclError(f"--set {override}: {step!r} is a value, not a group of settings.")
        place[last] = _parse(text.strip())
    return validate(kind, merged)


def validate(kind: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """`values` as settings of `kind`; MaclError names the wrong keys, under the prefix `where`, and those there are."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        found = error.errors()
        problems = [_problem(kind, where, problem) for problem in found[:PROBLEMS_NAMED]]
        if len(found) > PROBLEMS_NAMED:
            problems.append(f"and {len(found) - PROBLEMS_NAMED} more")
        raise MaclError(f"These settings do not fit: {'; '.join(problems)}.") from None


def _problem(kind: type[Settings], where: str, problem: ErrorDetails) -> str:
    path = problem["loc"]
    key = ".".join(filter(None, (where, *map(str, path))))
    group = _group(kind, path[:-1]) if path else None
    if group and problem["type"] == "extra_forbidden":
        return f"there is no {key}; {did_you_mean(str(path[-1]), tuple(group.model_fields))}"
    if group and isinstance(problem["input"], dict) and (own := f"{path[-1]}_settings") in group.model_fields:
        return f"{key} is a name, whose settings are under {own}"
    return f"{key}: {problem['msg'].lower()}"


def _group(kind: type[BaseModel], path: Iterable[str | int]) -> type[BaseModel] | None:
    """The settings at a path, through lists; None where it leads through something else."""
    for step in path:
        if isinstance(step, str):
            annotation = kind.model_fields[step].annotation if step in kind.model_fields else None
            models = [
                a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
            ]
            if not models:
                return None
            kind = models[0]
    return kind


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file; MaclError where it is missing or broken, `what` naming it ("a recipe")."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MaclError(f"There is no {path}, which should be {what}: check the path.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MaclError(f"{path} should be {what}, but cannot be read ({error}).") from None


def recipe_names(stage: Literal["pretrain", "finetune"]) -> tuple[str, ...]:
    """Recipes that travel in the package for a stage."""
    folder = files("macl") / "recipes" / stage
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def read_recipe(stage: Literal["pretrain", "finetune"], name: str | Path) -> dict[str, Any]:
    """A recipe by name (in the package) or by path (any `.toml`).

    Raises:
        MaclError: there is no such recipe; the known ones are named.
    """
    if str(name).endswith(".toml"):
        return read_toml(Path(name), "a recipe")
    if name not in recipe_names(stage):
        known = did_you_mean(str(name), recipe_names(stage))
        raise MaclError(f"There is no {stage} recipe called {str(name)!r}; {known}, or the path of a .toml file.")
    return tomllib.loads((files("macl") / "recipes" / stage / f"{name}.toml").read_text(encoding="utf-8"))
