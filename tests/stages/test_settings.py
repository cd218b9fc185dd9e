"""`macl settings`: every setting has a name that --set takes, a value and a meaning."""

from __future__ import annotations

import json

import pytest

from fakes.command import macl
from macl import plugins
from macl.config.mistakes import validate
from macl.config.recipes import resolve_recipe
from macl.config.settings import FinetuneSettings, PretrainSettings
from macl.stages.settings import STAGES, render, settings

NAMES = [*STAGES, *plugins.names("methods"), *plugins.names("models")]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_explained_in_80_columns(name: str) -> None:
    catalogue = settings(name)
    for setting in catalogue.settings:
        assert setting.description, setting.name
    for line in render(catalogue).splitlines():
        assert len(line) <= 80 or " = " in line


def test_values_are_those_of_the_recipe() -> None:
    shown = {setting.name: setting.value for setting in settings("finetune").settings}
    strong = resolve_recipe(FinetuneSettings, "strong")
    assert shown["training.learning_rate"] == strong.training.learning_rate
    paper = {setting.name: setting.value for setting in settings("finetune", "paper").settings}
    assert paper["loss"] == "cross_entropy"


def test_the_names_are_those_that_set_takes() -> None:
    for setting in settings("moco").settings:
        text = f"{setting.name}={json.dumps(setting.value)}"
        resolved = resolve_recipe(PretrainSettings, "moco", [text])
        validate(plugins.find("methods", "moco").Settings, resolved.method_settings)


def test_the_command() -> None:
    assert "macl-plus" in macl("settings").out
    answer = macl("settings", "pretrain", "--json")
    assert answer.code == 0
    epochs = json.loads(answer.out)["training.epochs"]
    assert epochs["takes"] == "above 0"
    assert "length of the run" in epochs["description"]
    assert "training.epochs = " in macl("settings", "pretrain").out
    wrong = macl("settings", "fintune")
    assert wrong.code == 1
    assert "did you mean 'finetune'" in wrong.err
