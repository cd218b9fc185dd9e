"""Build the wheel and the sdist, install the wheel in clean environments, and let macl work there.

Run by `make check-packaging`. The oldest Python takes the lowest dependencies that pyproject.toml
allows; then every Python of its classifiers takes the newest. A Python that is not on this machine
is named as not tried.
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
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    name: needs
    for name, needs in PROJECT["optional-dependencies"].items()
    if name not in ("dev", "docs")
}
"""Those that users install."""


def run(*words: object, folder: Path = ROOT) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run([*map(str, words)], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


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


def lowest() -> str:
    """The lowest version of every dependency, as constraints for pip."""
    needs = [*PROJECT["dependencies"], *(need for extra in EXTRAS.values() for need in extra)]
    bounds = [re.match(r"([\w-]+)>=([\d.]+)", need) for need in needs]
    return "".join(f"{bound[1]}=={bound[2]}\n" for bound in bounds if bound)


def check(python: str, wheel: Path, folder: Path, bounds: str, torch_index: str | None) -> None:
    """Install the wheel with all extras for users in an environment, and let it work there."""
    program = folder / "bin" / "python"
    constraints = folder / "constraints.txt"
    run(python, "-m", "venv", folder)
    constraints.write_text(bounds)
    install = [program, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    run(*install, "torch", *(["--index-url", torch_index] if torch_index else []))
    run(*install, "--force-reinstall", "--no-deps", wheel)
    run(*install, f"{wheel}[{','.join(EXTRAS)}]")
    run(program, "-m", "pip", "check")
    with tempfile.TemporaryDirectory() as empty:
        version = run(program, ROOT / "tests" / "packaging" / "smoke.py", folder=Path(empty))
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
    parser.add_argument("--torch-index", help="where to take PyTorch from")
    arguments = parser.parse_args()
    listed = (re.search(r"Python :: (3\.\d+)$", line) for line in PROJECT["classifiers"])
    pythons = [f"python{found[1]}" for found in listed if found]
    kinds = [(pythons[0], "lowest", lowest()), *((python, "newest", "") for python in pythons)]
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build(Path(scratch) / "dist")
        folder = arguments.environments or Path(scratch)
        for python, kind, bounds in kinds:
            if shutil.which(python):
                environment = folder.absolute() / f"{python}-{kind}"
                check(python, wheel, environment, bounds, arguments.torch_index)
            else:
                print(f"{python}-{kind}: not tried, since there is no {python} here.")


if __name__ == "__main__":
    main()
