"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


Out = Annotated[
    Path, typer.Option("--out", help="Folder to write. Anything else in it is an error.")
]
SeedOption = Annotated[
    int,
    typer.Option(
        "--seed", min=0, max=2**63 - 1, help="Seed of all random draws; saved with the result."
    ),
]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="Where to compute; auto uses a GPU if there is one.")
]
DevicesOption = Annotated[
    int,
    typer.Option(
        "--devices", min=1, help="GPUs to train on in parallel (with --device cpu: processes)."
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. training.epochs=50."),
]
RecipeOption = Annotated[
    str | None, typer.Option(help="Recipe, by name or path (.toml). Default: the method's own.")
]
EncoderOnlyOption = Annotated[
    bool, typer.Option("--encoder-only", help="Accept an init without decoder blocks.")
]
InitOption = Annotated[
    str | None,
    typer.Option("--init", help="Where to start: a training run, a weights file, or scratch."),
]
SegmenterSplitOption = Annotated[
    str | None,
    typer.Option("--split", help="Split file, or the name of a split in the package."),
]
BUDGET = (
    "Label budget of the split, such as 8 or 10%; all: everybody outside its test or, without "
    "--split, everybody."
)
LabelBudgetOption = Annotated[
    str | None,
    typer.Option("--labels", help=BUDGET),
]
InitDecoderBlocksOption = Annotated[
    int,
    typer.Option(min=0, max=4, help="Trained decoder blocks in a weights file of the authors."),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Resume the unfinished run in --out; nothing else need be repeated."
    ),
]
TrainedStore = Annotated[
    Path | None,
    typer.Argument(help="Folder made by `macl prepare`. Left out with --resume: the run's."),
]
TrainingSeed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, help="Seed of all random draws; saved with the result. Default: 0."
    ),
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify", help="Compare the store's arrays with their checksums first."
    ),
]
OverlapOption = Annotated[
    bool,
    typer.Option("--allow-overlap", help="Allow test people in the training data; recorded."),
]
FramesOption = Annotated[
    bool, typer.Option("--frames", help="The fourth axis is time: each time point is a case.")
]
PatientsOption = Annotated[
    str | None,
    typer.Option(
        "--patients",
        metavar="REGEX|FILE.csv",
        help="Who was scanned: what a regular expression finds in a case's name, or a table with "
        "the columns case, patient. Default: as the layout or the headers say.",
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="DIR|FILE.csv",
        help="Where labels are: a folder of files named like the scans, or a table with the "
        "columns image, label. Default: as the layout says.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Worker processes. Default: one per core.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object, for programs.")
]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Also log for TensorBoard (macl[tensorboard]).")
]
StoreArgument = Annotated[Path, typer.Argument(help="Folder made by `macl prepare`.")]
EncoderRun = Annotated[
    Path, typer.Option("--run", help="A finished run, such as a pre-training: its encoder.")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Windows at a time. Default: 16 slices, or fewer volumes of as many voxels."
    ),
]
GroupOption = Annotated[
    Literal["patient", "consecutive-pair"], typer.Option(help="Who counts as one person.")
]
