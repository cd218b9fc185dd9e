"""Settings: what overrides what, and mistakes in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from macl.config.mistakes import validate
from macl.config.recipes import read_recipe, resolve, resolve_recipe
from macl.config.settings import FinetuneSettings, NetworkRunSettings, PretrainSettings, Settings
from macl.utils.errors import MaclError
from macl.utils.user_text import read_toml_table


class Small(Settings):
    """Settings with one group."""

    class Inner(Settings):
        rate: float = Field(default=1.0, gt=0)
        name: str = "a"

    inner: Inner = Inner()
    steps: int = 3
    axes: tuple[str, ...] = ()


def test_overrides_win_over_the_recipe_which_wins_over_defaults() -> None:
    settings = resolve(Small, {"steps": 5, "inner": {"rate": 2.0}}, ["inner.rate=0.5"])
    assert (settings.steps, settings.inner.rate, settings.inner.name) == (5, 0.5, "a")


def test_the_recipe_is_not_changed_by_overrides() -> None:
    recipe = {"inner": {"rate": 2.0}}
    resolve(Small, recipe, ["inner.rate=0.5", "inner.name=b"])
    assert recipe == {"inner": {"rate": 2.0}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=7", {"steps": 7}),
        (" steps = 7 ", {"steps": 7}),
        ("inner.name=strong wind", {"inner": Small.Inner(name="strong wind")}),
        ('inner.name="7"', {"inner": Small.Inner(name="7")}),
        ('axes=["row", "column"]', {"axes": ("row", "column")}),
        ("inner.rate=1e-3", {"inner": Small.Inner(rate=1e-3)}),
    ],
)
def test_values_are_read_as_toml_or_else_as_text(
    override: str, expected: dict[str, object]
) -> None:
    assert resolve(Small, {}, [override]) == Small.model_validate(expected)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["steps"], "takes key=value"),
        (["step=3"], r"there is no step; did you mean 'steps'\? Known: inner, steps, axes\.$"),
        (["inner.rat=3"], r"there is no inner\.rat; did you mean 'rate'\? Known: rate, name\.$"),
        (["inner.rate=0"], r"inner\.rate: input should be greater than 0"),
        (["steps=many"], "steps: input should be a valid integer"),
        (["steps=1", "steps.more=2"], "'steps' is a value, not a group"),
        (["steps=x", "inner.rate=-1"], r"inner\.rate.*steps|steps.*inner\.rate"),
    ],
)
def test_wrong_settings_are_named(overrides: list[str], sentence: str) -> None:
    with pytest.raises(MaclError, match=sentence):
        resolve(Small, {}, overrides)


def test_the_settings_of_a_name_are_pointed_to() -> None:
    expected = r"backbone is a name, whose settings are under backbone_settings\.$"
    with pytest.raises(MaclError, match=expected):
        resolve(PretrainSettings, {}, ["backbone.width=4"])


@pytest.mark.parametrize("size", ["abc", "[64, 0]", "0", "{}", "[[1]]"])
def test_a_setting_with_alternatives_is_named_once_with_what_it_takes(size: str) -> None:
    with pytest.raises(MaclError) as error:
        resolve(PretrainSettings, {}, [f"training.size={size}"])
    text = str(error.value)
    assert text.startswith("These settings do not fit: training.size cannot be ")
    assert "(sides of a patch in voxels" in text
    assert text.count("training.size") == 1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["training.size=[8, 64, 64]"],
            "training.size has 3 sides, but dims is 2: give 2 sides, or --set dims=3",
        ),
        (
            ["training.size=[64, 64]", "dims=3"],
            "training.size has 2 sides, but dims is 3: give 3 sides, or --set dims=2",
        ),
        (
            ["training.size=[1, 8, 64, 64]"],
            "training.size has 4 sides, but dims is 2: give 2 sides",
        ),
    ],
)
def test_a_size_of_other_dimensions_is_a_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(MaclError) as error:
        resolve(PretrainSettings, {}, overrides)
    assert str(error.value) == f"These settings do not fit: {sentence}."


def test_at_most_four_problems_are_named() -> None:
    values = dict.fromkeys(("epochs", "batch_size", "learning_rate", "momentum", "size"), "x")
    with pytest.raises(MaclError, match="and 1 more"):
        validate(PretrainSettings, {"training": values})


@pytest.mark.parametrize(
    ("settings", "patch"),
    [
        ({"training": {"size": 64}}, (64, 64)),
        ({"training": {"size": [64, 96]}}, (64, 96)),
        ({"dims": 3, "training": {"size": 64}}, (64, 64, 64)),
        ({"dims": 3, "training": {"size": [16, 64, 96]}}, (16, 64, 96)),
    ],
)
def test_the_patch_has_a_side_for_every_axis(
    settings: dict[str, Any], patch: tuple[int, ...]
) -> None:
    resolved = validate(PretrainSettings, settings)
    assert resolved.patch == patch
    other = resolved.with_patch(tuple(2 * side for side in patch))
    assert other.patch == tuple(2 * side for side in patch)
    assert validate(PretrainSettings, json.loads(other.model_dump_json())) == other


def test_a_size_that_is_not_resolved_has_no_patch() -> None:
    settings = validate(PretrainSettings, {"training": {"size": "auto"}})
    with pytest.raises(ValueError, match="not resolved"):
        _ = settings.patch


# ---------------------------------------------------------------- recipes for volumes


@pytest.mark.parametrize(
    ("kind", "recipe", "volumes"),
    [(PretrainSettings, "pcl", "macl-3d"), (FinetuneSettings, "strong", "strong-3d")],
)
def test_a_recipe_for_slices_on_volumes_takes_its_sampling_from_that_for_volumes(
    kind: type[NetworkRunSettings], recipe: str, volumes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = resolve_recipe(kind, recipe, ["dims=3", "training.epochs=7"])
    assert f"{recipe} is a recipe for slices" in capsys.readouterr().err
    slices, source = resolve_recipe(kind, recipe), resolve_recipe(kind, volumes)
    assert capsys.readouterr().err == ""
    assert settings.training.size == source.training.size == "auto"
    assert settings.training.batch_size == source.training.batch_size
    assert settings.training.epochs == 7
    assert settings.training.steps is None, "an override of the epochs replaces the steps"
    rest = {"size", "batch_size", "epochs", "steps"}
    assert settings.training.model_dump(exclude=rest) == slices.training.model_dump(exclude=rest)
    for name in ("patients_per_position", "position_jitter", "foreground_share"):
        if name in kind.model_fields:
            assert getattr(settings, name) == getattr(source, name)


def test_overrides_win_over_the_recipe_for_volumes() -> None:
    overrides = ["dims=3", "training.size=[8, 16, 16]", "foreground_share=0.5"]
    settings = resolve_recipe(FinetuneSettings, "strong", overrides)
    assert (settings.patch, settings.foreground_share) == ((8, 16, 16), 0.5)


def test_strong_for_volumes_is_strong_but_for_its_sampling() -> None:
    other = {"dims", "foreground_share", "training"}
    slices, volumes = (resolve_recipe(FinetuneSettings, name) for name in ("strong", "strong-3d"))
    assert slices.model_dump(exclude=other) == volumes.model_dump(exclude=other)
    sampling = {"size", "batch_size"}
    assert slices.training.model_dump(exclude=sampling) == volumes.training.model_dump(
        exclude=sampling
    )


def test_what_is_inherited_gives_way_to_recipe_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[backbone_settings]\nwidth = 8\n")
    inherited = {"dims": 3, "backbone_settings": {"width": 4, "strides": [2, 2]}}
    recipe = str(tmp_path / "mine.toml")
    settings = resolve_recipe(PretrainSettings, recipe, inherited=inherited)
    assert (settings.dims, settings.backbone_settings) == (3, {"width": 8, "strides": [2, 2]})
    settings = resolve_recipe(PretrainSettings, recipe, ["dims=2"], inherited=inherited)
    assert settings.dims == 2


def test_where_stands_before_the_key() -> None:
    with pytest.raises(MaclError, match=r"grid\.toml\.inner\.rate"):
        validate(Small, {"inner": {"rate": -1}}, where="grid.toml")


def test_a_list_that_may_not_be_empty_is_said_to_need_values() -> None:
    class Budgets(Settings):
        labels: tuple[int, ...] = Field(min_length=2)

    with pytest.raises(MaclError, match="fit: labels needs at least 2 values"):
        validate(Budgets, {"labels": []})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Small().steps = 4


@pytest.mark.parametrize("kind", [PretrainSettings, FinetuneSettings])
def test_settings_survive_json(kind: type[Settings]) -> None:
    settings = kind()
    assert kind.model_validate_json(settings.model_dump_json()) == settings


def test_a_recipe_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[training]\nepochs = 2\n")
    assert read_recipe("pretrain", str(tmp_path / "mine.toml")) == {"training": {"epochs": 2}}


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        MaclError,
        match=r"no finetune recipe called 'srtong'; did you mean 'strong'\? Known: .*, or the path "
        r"of a \.toml file",
    ):
        read_recipe("finetune", "srtong")
    with pytest.raises(MaclError, match="which should be a recipe"):
        read_recipe("finetune", str(tmp_path / "mine.toml"))
    (tmp_path / "broken.toml").write_text("epochs = = 2")
    with pytest.raises(MaclError, match="cannot be read"):
        read_toml_table(tmp_path / "broken.toml", "a recipe")
