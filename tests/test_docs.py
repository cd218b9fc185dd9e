"""README and docs: macl takes every command they show, and every link leads somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from macl import cli, plugins
from macl.config.recipes import recipe_names
from macl.config.settings import (
    FinetuneSettings,
    PretrainSettings,
    SelftrainSettings,
    setting_names,
)
from macl.data.splits import split_names

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "datasets").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
]
RECORDS = sorted((ROOT / "docs" / "results").glob("*.md"))
"""Pages of their day, whose commands are those of their commit."""

COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
SETTINGS = {
    "pretrain": PretrainSettings, "profile": PretrainSettings, "finetune": FinetuneSettings,
    "selftrain": SelftrainSettings,
}  # fmt: skip
OPEN = ("method_settings.", "backbone_settings.")
"""Settings that depend on the plug-in; `macl` checks them where that is known."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The language and contents of every fenced or indented block."""
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```([\w{}-]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield language, block
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.findall(r"(?:^    .+\n)+", outside, re.MULTILINE):
        yield "", block


def shown_commands(page: Path) -> Iterator[list[str]]:
    """The words after `macl` of every command in a block, without comments and placeholders."""
    for language, block in blocks(page):
        if language not in ("", "bash"):
            continue
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            found = re.match(r"\s*(?:torchrun .*-m |srun .*?|time )?macl (.*)", line)
            if found and "…" not in line and "[--" not in line:
                yield shlex.split(found[1], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_blocks_are_taken_as_they_stand(page: Path) -> None:
    for command, *words in shown_commands(page):
        if command.startswith("--"):
            continue
        context = COMMANDS[command].make_context(f"macl {command}", [*words])
        values = context.params
        if recipe := values.get("recipe"):
            stage = "pretrain" if command == "profile" else command
            assert recipe.endswith(".toml") or recipe in recipe_names(stage), (command, words)
        if (split := values.get("split")) and not str(split).endswith(".json"):
            assert split in split_names(), (command, words)
        if method := values.get("method"):
            plugins.find("methods", method)
        for setting in values.get("overrides") or ():
            key, equals, _ = setting.partition("=")
            known = setting_names(SETTINGS[command])
            assert equals, (command, words)
            assert key in known or key.startswith(OPEN), (command, words)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_sentences_and_their_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for shown in re.findall(r"`macl ([^`]+)`", text):
        words = shown.split()
        if words[0].startswith("-"):
            continue
        assert words[0] in COMMANDS, shown
        known = {
            option
            for param in COMMANDS[words[0]].params
            for option in (*param.opts, *param.secondary_opts)
        }
        options = {word.partition("=")[0] for word in words if re.match(r"--\w", word)}
        assert options <= known | {"--quiet", "--help"}, shown


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_in_blocks_is_python(page: Path) -> None:
    for language, block in blocks(page):
        if language == "python":
            ast.parse(block, name(page))


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    without_code = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ +(.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *RECORDS], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^()\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link
