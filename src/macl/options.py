"""Options that several sub-commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Convention(StrEnum):
    """Ways to score."""

    strict = "strict"
    paper = "paper"


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


Out = Annotated[Path, typer.Option("--out", help="Folder to write; refused if it holds something else.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random draw; saved with the result.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute; auto takes a GPU if there is one.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. training.epochs=50.")
]
RecipeOption = Annotated[str | None, typer.Option(help="Recipe by name or path (.toml); the method's own by default.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --out, exactly.")]
OverlapOption = Annotated[
    bool, typer.Option("--allow-overlap", help="Allow test people in pre-training data (recorded).")
]
DevicesOption = Annotated[
    int, typer.Option("--devices", min=1, help="GPUs of this machine that share every batch (with cpu: processes).")
]
FramesOption = Annotated[bool, typer.Option("--frames", help="The fourth axis is time: every moment is a case.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
StoreArgument = Annotated[Path, typer.Argument(help="Folder made by `macl prepare`.")]
