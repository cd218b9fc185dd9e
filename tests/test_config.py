from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from macl.config import FinetuneSettings, PretrainSettings, Settings, read_recipe, read_toml, resolve, validate
from macl.utils.errors import MaclError


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
def test_values_are_read_as_toml_or_else_as_text(override: str, expected: dict[str, object]) -> None:
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
    with pytest.raises(MaclError, match=r"backbone is a name, whose settings are under backbone_settings\.$"):
        resolve(PretrainSettings, {}, ["backbone.width=4"])


def test_where_stands_before_the_key() -> None:
    with pytest.raises(MaclError, match=r"grid\.toml\.inner\.rate"):
        validate(Small, {"inner": {"rate": -1}}, where="grid.toml")


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
        match=r"no finetune recipe called 'srtong'; did you mean 'strong'\? Known: .*, or the path of a \.toml file",
    ):
        read_recipe("finetune", "srtong")
    with pytest.raises(MaclError, match="which should be a recipe"):
        read_recipe("finetune", str(tmp_path / "mine.toml"))
    (tmp_path / "broken.toml").write_text("epochs = = 2")
    with pytest.raises(MaclError, match="cannot be read"):
        read_toml(tmp_path / "broken.toml", "a recipe")
