"""What the layout promises, where no other tool can see it."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from macl import plugins
from macl.config.mistakes import validate
from macl.config.recipes import read_recipe, recipe_names, resolve
from macl.config.settings import FinetuneSettings, PluginSettings, PretrainSettings
from macl.models.network import Network
from macl.readers._reader import Reader
from macl.tasks.pretraining import Method

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "macl"
MODULES = sorted(SOURCE.rglob("*.py"))
BASES = {"methods": Method, "models": Network, "readers": Reader}
HEAVY = [
    "torch",
    "numpy",
    "scipy",
    "nibabel",
    "SimpleITK",
    "pydicom",
    "matplotlib",
    "jinja2",
    "nilearn",
    "blosc2",
]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def calls(module: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def imported(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_after(statement: str) -> tuple[set[str], float]:
    """Top-level packages in memory after a statement in a fresh Python, and the processor time it
    took."""
    script = (
        f"import sys, time, json\n{statement}\n"
        "names = sorted({name.partition('.')[0] for name in sys.modules})\n"
        "print(json.dumps([names, time.process_time()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    names, seconds = json.loads(done.stdout.splitlines()[-1])
    return set(names), seconds


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_a_layer() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "importlinter"
    ]
    layers = next(
        contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"
    )
    placed = {name.strip() for layer in layers for name in re.split(r"[|:]", layer)}
    there = {
        f"macl.{path.stem}"
        for path in SOURCE.iterdir()
        if path.suffix == ".py" and path.stem[0] != "_"
    }
    there |= {f"macl.{path.name}" for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    assert there == placed


def test_plugins_are_looked_up_at_the_top_alone() -> None:
    """By stages and workflows, and where the settings of a run are completed; the rest is handed
    them."""
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in MODULES
        if {"macl.plugins.find", "importlib"} & {*imported(tree(path))}
        or any(name == "plugins.find" for name, _ in calls(tree(path)))
    }
    found -= {"__init__.py", "plugins.py", "tasks/run_settings.py"}
    assert {name.split("/")[0] for name in found} <= {"stages", "workflows"}


def test_nothing_is_unpickled_or_pickled() -> None:
    picklers = {"cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in MODULES:
        module = tree(path)
        assert picklers.isdisjoint(imported(module)), path
        used = {ast.unparse(node) for node in ast.walk(module) if isinstance(node, ast.Attribute)}
        assert {name for name in used if name.startswith("pickle.")} <= {
            "pickle.UnpicklingError"
        }, path
        assert not any(name.startswith("pickle.") for name in imported(module)), path
        for name, call in calls(module):
            # For programs that read nothing else, in one place.
            exported = path == SOURCE / "models" / "conversion" / "pickled.py"
            assert name != "torch.save" or exported, path
            if name == "torch.load":
                assert keywords(call).get("weights_only") == "True", path
            assert "allow_pickle" not in keywords(call), path


def defined_classes() -> Iterator[tuple[str, Path]]:
    """Every public class or type alias of a module, and where it stands."""
    for path in MODULES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef):
                yield node.name, path
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                yield node.targets[0].id, path


def test_a_name_means_one_thing() -> None:
    """Every public class and type alias is declared once; a plug-in's `Settings` is its own."""
    places: dict[str, list[str]] = {}
    for name, path in defined_classes():
        if re.fullmatch(r"[A-Z][a-z]\w*", name) and name != "Settings":
            places.setdefault(name, []).append(str(path.relative_to(SOURCE)))
    assert not {name: where for name, where in places.items() if len(where) > 1}


@pytest.mark.parametrize("kind", get_args(plugins.PluginKind))
def test_plugins_do_not_know_each_other(kind: plugins.PluginKind) -> None:
    known = {f"macl.{kind}.{name}" for name in plugins.names(kind)}
    for name in plugins.names(kind):
        used = known & {*imported(tree(SOURCE / kind / f"{name}.py"))}
        assert not used, f"macl/{kind}/{name}.py imports {used}: share it in a module of its own"


def test_networks_alone_know_how_often_they_pool() -> None:
    """Nobody outside reckons with four poolings, a stride of 16, or channels that double."""
    assumption = re.compile(r"// ?16\b|\* ?16\b|2 ?\*\* ?\w*(blocks|level)|POOLED|LEVELS\b")
    allowed = {SOURCE / "models", SOURCE / "methods"}
    for path in MODULES:
        if allowed.isdisjoint(path.parents):
            text = path.read_text(encoding="utf-8")
            assert not (found := assumption.search(text)), f"{path.relative_to(SOURCE)}: {found}"


def project_text() -> Iterator[Path]:
    folders = [SOURCE, ROOT / "tests", ROOT / "docs", ROOT / "benchmarks", ROOT / ".ci"]
    kinds = {".py", ".md", ".toml", ".json", ".css", ".html", ".txt", ".yaml", ".cff", ""}
    files = [*(path for folder in folders for path in folder.rglob("*")), *ROOT.iterdir()]
    return (
        path for path in files if path.is_file() and path.suffix in kinds and path.name != ".git"
    )


def test_the_text_names_no_place_on_a_machine() -> None:
    place = re.compile(r"(?<![\w.~-])/(?:work|opt|tmp|root|home|Users|mnt)/\w")
    for path in project_text():
        found = place.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_links_in_the_documentation_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert re.match(r"https?:|mailto:", link) or (page.parent / link).exists(), (
                f"{page.name}: {link}"
            )


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    statement = "from macl.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass"
    names, seconds = modules_after(statement)
    assert names.isdisjoint(HEAVY)
    assert seconds < 2.0


def test_training_needs_no_scan_library() -> None:
    names, _ = modules_after("import macl.stages.pretrain, macl.stages.finetune")
    assert names.isdisjoint(
        {
            "nibabel",
            "SimpleITK",
            "pydicom",
            "matplotlib",
            "jinja2",
            "nilearn",
            "torchvision",
            "monai",
        }
    )


@pytest.mark.parametrize("kind", get_args(plugins.PluginKind))
def test_the_folder_is_the_catalogue(kind: plugins.PluginKind) -> None:
    files = {path.stem: path for path in (SOURCE / kind).glob("[a-z]*.py")}
    with_plugin = {name for name, path in files.items() if "\nPLUGIN = " in path.read_text()}
    assert plugins.names(kind) == tuple(sorted(with_plugin))
    for name in with_plugin:
        plugin = importlib.import_module(f"macl.{kind}.{name}").PLUGIN
        assert plugins.find(kind, name) is plugin
        assert issubclass(plugin, BASES[kind])
        if kind != "readers":
            assert issubclass(plugin.Settings, PluginSettings)
            plugin.Settings()


@pytest.mark.parametrize(
    ("kind", "wrong", "near"),
    [("methods", "mcal", "macl"), ("models", "unte", "unet"), ("readers", "acdd", "acdc")],
)
def test_a_wrong_name_is_answered_with_the_nearest(
    kind: plugins.PluginKind, wrong: str, near: str
) -> None:
    from macl.utils.errors import MaclError

    with pytest.raises(MaclError, match=f"did you mean '{near}'"):
        plugins.find(kind, wrong)  # pyright: ignore[reportCallIssue, reportArgumentType]


@pytest.mark.parametrize("name", recipe_names("pretrain"))
def test_pretraining_recipes_fit_their_settings(name: str) -> None:
    settings = resolve(PretrainSettings, read_recipe("pretrain", name))
    validate(plugins.find("methods", settings.method).Settings, settings.method_settings)
    validate(plugins.find("models", settings.backbone).Settings, settings.backbone_settings)


@pytest.mark.parametrize("name", recipe_names("finetune"))
def test_finetuning_recipes_fit_their_settings(name: str) -> None:
    settings = resolve(FinetuneSettings, read_recipe("finetune", name))
    validate(plugins.find("models", settings.backbone).Settings, settings.backbone_settings)


def test_every_method_has_a_recipe_of_its_name_and_fine_tuning_has_both() -> None:
    assert {*plugins.names("methods")} <= {*recipe_names("pretrain")}
    assert {"strong", "paper"} <= {*recipe_names("finetune")}
