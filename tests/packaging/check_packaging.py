"""Build the wheel and the sdist, install the wheel in clean environments, and let macl work there.

Run by `make check-packaging`. The oldest Python takes the lowest dependencies that pyproject.toml
allows, without extras and with those for users; then every Python takes the newest. A Python that
is not on this machine is named as not tried.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    name: needs
    for name, needs in PROJECT["optional-dependencies"].items()
    if name not in ("dev", "docs")
}
"""Those that users install."""

PYTHONS = ("python3.11", "python3.12", "python3.13")


class Trial(NamedTuple):
    """With which dependencies macl is tried: constraints for pip, and macl's extras."""

    name: str
    bounds: str
    extras: tuple[str, ...]


def run(*words: object, folder: Path = ROOT) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run([*map(str, words)], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


def is_there(python: str) -> bool:
    """Whether there is such a Python; a shim alone, of a version that is not chosen, is none."""
    return bool(shutil.which(python)) and not subprocess.run([python, "-V"]).returncode


def build(folder: Path) -> Path:
    """The sdist from the checkout, and the wheel from the sdist; both hold what they should."""
    run(sys.executable, "-m", "build", "--outdir", folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    tracked = {*run("git", "ls-files").split("\n")} - {""}
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert files == tracked | {"PKG-INFO"}, f"{sdist.name}: {sorted(files ^ tracked)}"
    package = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    with zipfile.ZipFile(wheel) as archive:
        contents = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert contents == package, f"{wheel.name}: {sorted(contents ^ package)}"
    assert licences, f"{wheel.name} has no licence"
    print(f"{sdist.name}: {len(files)} files. {wheel.name}: {len(contents)} files.", flush=True)
    return wheel


def lowest(needs: Iterable[str]) -> str:
    """The lowest version of every dependency that all of `needs` allow, as constraints for pip."""
    bounds: dict[str, str] = {}
    for need in needs:
        name, version = re.findall(r"^([\w-]+)>=([\d.]+)", need)[0]
        bounds[name] = max(version, bounds.get(name, "0"), key=Version)
    return "".join(f"{name}=={version}\n" for name, version in bounds.items())


def check(python: str, folder: Path, wheel: Path, trial: Trial, torch_index: str | None) -> None:
    """Install the wheel in an environment, and let it work there."""
    program = folder / "bin" / "python"
    run(python, "-m", "venv", folder)
    constraints = folder / "constraints.txt"
    constraints.write_text(trial.bounds)
    install = [program, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    run(*install, "torch", *(["--index-url", torch_index] if torch_index else []))
    run(*install, "--force-reinstall", "--no-deps", wheel)
    run(*install, f"macl[{','.join(trial.extras)}] @ {wheel.as_uri()}")
    run(program, "-m", "pip", "check")
    smoke = ROOT / "tests" / "packaging" / "smoke.py"
    with tempfile.TemporaryDirectory() as empty:
        version = run(program, smoke, *trial.extras, folder=Path(empty))
    installed = dict(
        line.split("==") for line in run(program, "-m", "pip", "freeze").split() if "==" in line
    )
    some = [f"{name} {installed[name]}" for name in ("torch", "numpy", "pydantic", "typer")]
    print(f"{folder.name}: {version.strip()} works with {', '.join(some)}.", flush=True)


def main() -> None:
    """Build, then every environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--environments", type=Path, help="keep the environments here, to be used again"
    )
    parser.add_argument("--only", help="try only environments whose name holds this")
    parser.add_argument("--torch-index", help="where to take PyTorch from")
    arguments = parser.parse_args()
    core, extras = PROJECT["dependencies"], [need for needs in EXTRAS.values() for need in needs]
    newest = Trial("newest", "", tuple(EXTRAS))
    trials = [
        (PYTHONS[0], Trial("lowest", lowest(core), ())),
        (PYTHONS[0], Trial("lowest-extras", lowest([*core, *extras]), tuple(EXTRAS))),
        *((python, newest) for python in PYTHONS),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build(Path(scratch) / "dist")
        folder = arguments.environments or Path(scratch)
        for python, trial in trials:
            name = f"{python}-{trial.name}"
            if arguments.only and arguments.only not in name:
                continue
            if is_there(python):
                check(python, folder.absolute() / name, wheel, trial, arguments.torch_index)
            else:
                print(f"{name}: not tried, since there is no {python} here.")


if __name__ == "__main__":
    main()
