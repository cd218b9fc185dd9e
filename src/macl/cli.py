"""The command `macl`: one sub-command per stage, in the order of the path."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

import macl
from macl.utils.errors import MaclError
from macl.utils.failures import describe
from macl.utils.interruption import end_on_sigterm, exit_code
from macl.utils.progress import be_quiet, say, warn
from macl.utils.ranks import exit_rank, require_single_process, this_rank
from macl.utils.text import without_control, write_plain_where_needed

if TYPE_CHECKING:
    from macl.records.runs import RunRecord

EXAMPLES = {
    "demo": "macl demo --out demo",
    "run": "macl run scans --labels masks --out first --minutes 30",
    "inspect": "macl inspect scans",
    "prepare": "macl prepare scans my.store",
    "split": "macl split my.store --out my.json --test 20% --budgets 8,25%",
    "pretrain": "macl pretrain my.store --split my.json --out runs/macl",
    "embed": "macl embed my.store --run runs/macl --out features.npz",
    "choose": "macl choose my.store --run runs/macl --count 8 --out chosen.csv",
    "finetune": "macl finetune my.store --split my.json --labels 8 --init runs/macl "
    "--out runs/macl-8",
    "selftrain": "macl selftrain my.store --split my.json --labels 8 --init runs/macl-8 "
    "--out runs/macl-8-self",
    "predict": "macl predict runs/macl-8 scan.nii.gz --out masks",
    "evaluate": "macl evaluate masks my.store --out cases.csv",
    "check": "macl check my.store",
    "export": "macl export runs/macl --to nnunet --plans nnUNetPlans.json "
    "--configuration 3d_fullres --out macl.pth",
    "profile": "macl profile --store my.store",
    "benchmark": "macl benchmark grid.toml --out bench",
    "report": "macl report runs/macl-8 runs/scratch-8 --out report.html",
    "settings": "macl settings finetune",
}
"""One call of every command, for its help and for the answer to a missing argument."""


class _Commands(TyperGroup):
    """All commands: each has an example in its help, and in the answer to a missing argument."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, command in self.commands.items():
            if name in EXAMPLES:
                # After \b a line is not broken, so that it can be copied.
                command.epilog = f"\b\nExample: {EXAMPLES[name]}"

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            context: Any = getattr(error, "ctx", None)
            name = context.info_name if context else None
            if type(error).__name__ == "MissingParameter" and name in EXAMPLES:
                vars(error)["message"] = f"For example: {EXAMPLES[name]}"
            elif message := vars(error).get("message"):
                vars(error)["message"] = message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="macl",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From unlabelled scans and a handful of labels to a segmentation model.",
    epilog="The path: inspect → prepare → split → pretrain → finetune → selftrain → predict → "
    "evaluate → report.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class _CommandWithSettings(TyperCommand):
    """A command that says of `--batch-size 4` how that setting is given: with --set."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            option = str(getattr(error, "option_name", ""))
            if option:
                _name_the_setting(error, option.lstrip("-").replace("-", "_"))
            raise


def _name_the_setting(error: Any, name: str) -> None:
    from macl.config.settings import FinetuneSettings, PretrainSettings, setting_names

    short = {"lr": "learning_rate", "patch_size": "size", "bs": "batch_size"}
    wanted = short.get(name, name)
    names = dict.fromkeys((*setting_names(PretrainSettings), *setting_names(FinetuneSettings)))
    if found := next((full for full in names if full.rpartition(".")[2] == wanted), None):
        error.message = f"{error.message}: use --set {found}=…"
        error.possibilities = None


def _next(*commands: tuple[object, ...]) -> None:
    """Say which commands come next on the path."""
    for number, words in enumerate(commands):
        say(f"{'     ' if number else 'Next:'} macl {shlex.join(map(str, words))}")


def _next_after_training(run: Path, record: RunRecord) -> None:
    """What comes after a segmenter: its test people, where it has any, and other scans."""
    masks = run / "predictions"
    scored = [
        ("predict", run, record.store, "--out", masks),
        ("evaluate", masks, record.store, "--out", run / "cases.csv"),
        ("report", run, "--out", "report.html"),
    ]
    _next(*(scored if record.test_cases else []), ("predict", run, "SCANS", "--out", "masks"))


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


def _print_result(as_json: bool, values: Mapping[str, Any], text: str = "") -> None:
    """Print a command's result to stdout: one JSON object, or a text for people."""
    if as_json and this_rank().is_zero:
        print(json.dumps(values, indent=1, ensure_ascii=False, default=str))
    elif text and not as_json:
        print(text)


def _print_version(requested: bool) -> None:
    if requested:
        from macl.utils.commit import commit_of_macl

        commit = commit_of_macl()
        print(f"macl {macl.__version__}{f' (commit {commit})' if commit else ''}")
        raise typer.Exit


@app.callback()
def check_launch(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            help="Print no progress and no messages, only results and warnings; for any command.",
        ),
    ] = False,
) -> None:
    """Refuse several processes for commands that cannot share their work."""
    be_quiet(quiet)
    if context.invoked_subcommand not in ("pretrain", "finetune", "selftrain"):
        require_single_process(f"macl {context.invoked_subcommand}")


@app.command()
def demo(
    out: Out = Path("demo"),
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Train on volumes (3D) instead of slices.")
    ] = False,
) -> None:
    """Run the whole path on a dozen synthetic brain scans.

    They are made from a real template.
    """
    from macl.workflows.demo import SLICES, VOLUMES
    from macl.workflows.demo import demo as run

    run(out, VOLUMES if volumes else SLICES)


@app.command()
def run(
    scans: Annotated[
        Path | None, typer.Argument(help="A folder of scans, in a known layout or in any other.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write. Default: that of --plan.")
    ] = None,
    reader: Annotated[
        str | None, typer.Option(help="Layout of SCANS. Default: recognised.")
    ] = None,
    labels: LabelsOption = None,
    patients: PatientsOption = None,
    minutes: Annotated[
        float, typer.Option(help="Time for everything; more gives a better model.")
    ] = 60.0,
    device: DeviceOption = Device.auto,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="PLAN.toml", help="Follow this plan, such as an edited OUT/plan.toml."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, with its times; write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn scans and a few labels into masks, scores and a page.

    The whole path, with settings chosen from the data and this machine: see OUT/plan.toml.
    Killed at any time and run again, it goes on.
    Without labels it ends with pre-trained weights.
    """
    from macl.workflows.run.command import run as run_all
    from macl.workflows.run.summary import as_values, summary

    if plan is None and (scans is None or (out is None and not dry_run)):
        raise typer.BadParameter(f"missing SCANS or --out. For example: {EXAMPLES['run']}")
    if dry_run and as_json:
        raise typer.BadParameter("--json is about what was made, and --dry-run makes nothing.")
    result = run_all(
        scans,
        out,
        reader=reader,
        labels=labels,
        patients=patients,
        minutes=minutes,
        device=device.value,
        plan=plan,
        dry_run=dry_run,
    )
    if result:
        _print_result(as_json, as_values(result), summary(result))


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="A folder of scans, a store, a run or a scan.", show_default=False),
    ],
    reader: Annotated[
        str | None, typer.Option(help="Layout of a folder of scans. Default: recognised.")
    ] = None,
    frames: FramesOption = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read only the headers; count no voxels.")
    ] = False,
    patients: PatientsOption = None,
    labels: LabelsOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a folder of scans, a store, a run or a scan."""
    from macl.stages.inspect import inspect as run
    from macl.stages.inspect import render

    description = run(
        path,
        reader=reader,
        frames=frames,
        quick=quick,
        patients=patients,
        labels=labels,
        workers=workers,
    )
    _print_result(as_json, description, render(description))
    if description["kind"] == "source":
        given = {"--reader": reader, "--patients": patients, "--labels": labels}
        words = [word for name, value in given.items() if value for word in (name, value)]
        _next(("prepare", path, "my.store", *words, *(["--frames"] if frames else [])))


@app.command()
def prepare(
    source: Annotated[
        Path, typer.Argument(help="A folder of scans, in a known layout or in any other.")
    ],
    store: Annotated[Path, typer.Argument(help="Folder to write; an unfinished store is resumed.")],
    reader: Annotated[
        str | None, typer.Option(help="Layout of SOURCE. Default: recognised.")
    ] = None,
    spacing_mm: Annotated[
        str | None,
        typer.Option(
            metavar="MM|Z,Y,X|median",
            help="Resample: slices in plane to one number, volumes to three, such as 5,1.5,1.5, or "
            "to the median spacing. Default: as scanned.",
        ),
    ] = None,
    plane: Annotated[
        Literal["auto", "axial", "coronal", "sagittal"], typer.Option(help="Plane of the slices.")
    ] = "auto",
    window: Annotated[
        Literal["soft_tissue", "lung", "bone", "brain", "liver"] | None,
        typer.Option(help="CT: clip to this window in Hounsfield units instead of percentiles."),
    ] = None,
    plans: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prepare as this nnUNetPlans.json does: axes, crop, spacing and normalisation.",
        ),
    ] = None,
    configuration: Annotated[
        str | None, typer.Option(help="Configuration of the plans. Default: 3d_fullres.")
    ] = None,
    frames: FramesOption = False,
    keep_identity: Annotated[
        bool, typer.Option(help="Keep names of folders and DICOM patient ids: no hashes.")
    ] = False,
    patients: PatientsOption = None,
    labels: LabelsOption = None,
    workers: WorkersOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if any case is refused.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn raw scans into a store.

    Broken cases are left out with a reason.
    """
    from macl.config.mistakes import validate
    from macl.config.settings import PrepareSettings
    from macl.stages.prepare import prepare as run

    if configuration and plans is None:
        raise MaclError("--configuration names one of a plan's: add --plans nnUNetPlans.json.")
    chosen = {
        "spacing_mm": spacing_mm,
        "plane": plane,
        "window": window,
        "frames": frames,
        "keep_identity": keep_identity,
    }
    settings = validate(PrepareSettings, chosen)
    index = run(
        source,
        store,
        reader=reader,
        settings=settings,
        patients=patients,
        labels=labels,
        workers=workers,
        plans=plans,
        configuration=configuration or "3d_fullres",
    )
    about = {
        "store": store,
        "reader": index.reader,
        "classes": index.classes,
        "cases": {
            case.name: {"patient": case.patient, "labelled": case.labelled} for case in index.cases
        },
        "refused": [case.model_dump() for case in index.refused],
    }
    _print_result(as_json, about)
    if any(case.labelled for case in index.cases):
        _next(("split", store, "--out", "my.json"))
    else:
        _next(("pretrain", store, "--out", "runs/macl"))
    if strict and index.refused:
        raise typer.Exit(1)


@app.command()
def split(
    store: StoreArgument,
    out: Annotated[Path, typer.Option("--out", help="Split file to write (.json).")],
    test: Annotated[
        str | None,
        typer.Option(
            help="Patients to test: a number or a percentage; 0 for a final model. Default: 20%."
        ),
    ] = None,
    validation: Annotated[
        str, typer.Option(help="Patients whose labels choose the best weights; 0: keep the last.")
    ] = "0",
    budgets: Annotated[
        str, typer.Option(help="Nested label budgets: numbers of patients or percentages.")
    ] = "10%,25%",
    group: GroupOption = "patient",
    seed: SeedOption = 0,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Write this many splits, which test everybody once.")
    ] = None,
    stratify: Annotated[
        bool, typer.Option("--stratify", help="Spread rare structures evenly over all parts.")
    ] = False,
    reserve: Annotated[
        Path | None,
        typer.Option(
            help="Use nothing of this split's test people: for a split that chooses settings."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose who trains, validates and tests, by patient."""
    from macl.stages import split as stage

    options = stage.SplitKeywords(
        validation=validation,
        budgets=budgets,
        group=group,
        seed=seed,
        stratify=stratify,
        reserve=reserve,
    )
    if folds is None:
        drawn = {out: stage.split(store, out, test=test or "20%", **options)}
        _next(("pretrain", store, "--split", out, "--out", "runs/macl"))
    elif test is not None:
        raise MaclError("--folds tests everybody once, so --test has no meaning: give only one.")
    else:
        splits = stage.folds(store, out, count=folds, **options)
        drawn = {out.with_name(f"{split.name}.json"): split for split in splits}
        _next(("pretrain", store, "--split", next(iter(drawn)), "--out", "runs/macl-fold1"))
    about = {str(file): split.model_dump(mode="json") for file, split in drawn.items()}
    _print_result(as_json, {"splits": about})


@app.command(cls=_CommandWithSettings)
def pretrain(
    out: Out,
    store: TrainedStore = None,
    method: Annotated[
        str | None, typer.Option(help="How to pre-train. Default: the recipe's, or macl.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split file or name; its test people are left out.")
    ] = None,
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006
    device: DeviceOption = Device.auto,
    devices: DevicesOption = 1,
    seed: TrainingSeed = None,
    resume: ResumeOption = False,
    allow_overlap: OverlapOption = False,
    verify: VerifyOption = True,
    tensorboard: TensorboardOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pre-train a network on unlabelled scans, in 2D or 3D."""
    from macl.distributed.launch import launch_processes
    from macl.stages.pretrain import pretrain as run

    _require("pretrain", resume, STORE=store)
    launch_processes(devices, sys.argv[1:])
    record = run(
        store,
        out,
        method=method,
        split=split,
        recipe=recipe,
        overrides=overrides,
        device=device.value,
        resume=resume,
        inherit=resume,
        allow_overlap=allow_overlap,
        verify=verify,
        tensorboard=tensorboard,
        **_seed_if_given(seed),
    )
    _print_result(as_json, {"run": out, **record.model_dump(mode="json")})
    store = store or Path(record.store)
    if record.classes:
        budget = next(iter(record.split["budgets"] if record.split else ()), "N")
        words = ("--split", split or "my.json", "--labels", budget, "--init", out)
        _next(("finetune", store, *words, "--out", f"{out}-{budget}"))
    else:
        _next(("choose", store, "--run", out, "--count", 8))


@app.command()
def embed(
    store: StoreArgument,
    run: EncoderRun,
    out: Annotated[Path, typer.Option("--out", help="File to write (.npz).")],
    batch_size: BatchSizeOption = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Write a run's features of every slice, or window, and scan."""
    from macl.stages.embed import embed as stage

    features = stage(store, out, run=run, batch_size=batch_size, device=device.value)
    shapes = {name: array.shape for name, array in features.items() if array.ndim}
    _print_result(as_json, {"file": out, "arrays": shapes})


@app.command()
def choose(
    store: StoreArgument,
    run: EncoderRun,
    count: Annotated[int, typer.Option(min=1, help="How many people to choose.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write too (.json or .csv).")
    ] = None,
    among: Annotated[
        Literal["unlabelled", "labelled"],
        typer.Option(help="Whom to choose from; labelled: as if they were not labelled yet."),
    ] = "unlabelled",
    strategy: Annotated[
        Literal["coverage", "farthest"],
        typer.Option(help="coverage: who is most like the others. farthest: who is least like."),
    ] = "coverage",
    split: Annotated[
        str | None,
        typer.Option(help="Split file or name; its test and validation people are left out."),
    ] = None,
    group: GroupOption = "patient",
    batch_size: BatchSizeOption = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Rank unlabelled people: whom to label first.

    Those come first who stand best for all others in the features of a run.
    """
    from macl.stages import choose as stage

    chosen = stage.choose(
        store,
        out,
        run=run,
        count=count,
        among=among,
        strategy=strategy,
        split=split,
        group=group,
        batch_size=batch_size,
        device=device.value,
    )
    _print_result(as_json, stage.about(chosen, store, run, strategy), stage.render(chosen))
    say(
        "Mean distance: of everybody to the nearest person who is labelled or chosen so far; after "
        "the first choice it is 100 %.\n"
        "Next: label them in this order, then macl prepare again, with the labels."
    )


@app.command(cls=_CommandWithSettings)
def finetune(
    out: Out,
    store: TrainedStore = None,
    init: InitOption = None,
    split: SegmenterSplitOption = None,
    labels: LabelBudgetOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="strong, strong-3d, paper, or a path (.toml). Default: strong."),
    ] = None,
    overrides: SetOption = [],  # noqa: B006
    device: DeviceOption = Device.auto,
    devices: DevicesOption = 1,
    seed: TrainingSeed = None,
    resume: ResumeOption = False,
    allow_overlap: OverlapOption = False,
    verify: VerifyOption = True,
    encoder_only: EncoderOnlyOption = False,
    init_decoder_blocks: InitDecoderBlocksOption = 2,
    tensorboard: TensorboardOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a segmenter with few labels.

    It starts from pre-trained weights or from scratch.
    """
    from macl.distributed.launch import launch_processes
    from macl.stages.finetune import finetune as run
    from macl.stages.selftrain import is_worth_trying

    _require("finetune", resume, **_labelled(store, init, split, labels))
    launch_processes(devices, sys.argv[1:])
    record = run(
        store,
        out,
        init=init,
        split=split,
        labels=labels,
        encoder_only=encoder_only,
        init_decoder_blocks=init_decoder_blocks,
        recipe=recipe,
        overrides=overrides,
        device=device.value,
        resume=resume,
        inherit=resume,
        allow_overlap=allow_overlap,
        verify=verify,
        tensorboard=tensorboard,
        **_seed_if_given(seed),
    )
    _print_result(as_json, {"run": out, **record.model_dump(mode="json")})
    _next_after_training(out, record)
    if is_worth_trying(record):
        words = ("--split", split or "SPLIT", "--labels", record.labels, "--init", out)
        say("With so few labels, unlabelled scans help once more:")
        _next(("selftrain", record.store, *words, "--out", f"{out}-self"))


def _require(command: str, resume: bool, **arguments: object) -> None:
    """Refuse a training that lacks arguments, unless it resumes a run that has them."""
    missing = [name for name, value in arguments.items() if value is None]
    if missing and not resume:
        raise typer.BadParameter(
            f"missing {', '.join(missing)} (which --resume needs not). For example: "
            f"{EXAMPLES[command]}"
        )


def _labelled(
    store: Path | None, init: str | None, split: str | None, labels: str | None
) -> dict[str, object]:
    """What training with labels cannot do without, by name; all labels need no split."""
    needed = {"STORE": store, "--init": init, "--labels": labels}
    return needed if labels == "all" else {**needed, "--split": split}


def _seed_if_given(seed: int | None) -> dict[str, int]:
    return {} if seed is None else {"seed": seed}


@app.command(cls=_CommandWithSettings)
def selftrain(
    out: Out,
    store: TrainedStore = None,
    init: InitOption = None,
    split: SegmenterSplitOption = None,
    labels: LabelBudgetOption = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="A finished fine-tuned run, which labels the unlabelled scans once. Default: the "
            "moving average of the segmenter itself, at every step."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="mean-teacher, mean-teacher-3d, noisy-student, or a path (.toml). Default: "
            "mean-teacher; with a teacher, noisy-student."
        ),
    ] = None,
    overrides: SetOption = [],  # noqa: B006
    device: DeviceOption = Device.auto,
    devices: DevicesOption = 1,
    seed: TrainingSeed = None,
    resume: ResumeOption = False,
    allow_overlap: OverlapOption = False,
    verify: VerifyOption = True,
    encoder_only: EncoderOnlyOption = False,
    init_decoder_blocks: InitDecoderBlocksOption = 2,
    tensorboard: TensorboardOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a segmenter with few labels and unlabelled scans.

    The unlabelled scans are those of the split.
    """
    from macl.distributed.launch import launch_processes
    from macl.stages.selftrain import selftrain as run

    _require("selftrain", resume, **_labelled(store, init, split, labels))
    launch_processes(devices, sys.argv[1:])
    record = run(
        store,
        out,
        init=init,
        split=split,
        labels=labels,
        teacher=teacher,
        encoder_only=encoder_only,
        init_decoder_blocks=init_decoder_blocks,
        recipe=recipe,
        overrides=overrides,
        device=device.value,
        resume=resume,
        inherit=resume,
        allow_overlap=allow_overlap,
        verify=verify,
        tensorboard=tensorboard,
        **_seed_if_given(seed),
    )
    _print_result(as_json, {"run": out, **record.model_dump(mode="json")})
    _next_after_training(out, record)


@app.command()
def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN... SCAN|FOLDER|STORE...",
            help="Fine-tuned runs, whose probabilities are averaged, then scans.",
        ),
    ],
    out: Out,
    cases: Annotated[
        Literal["test", "all"], typer.Option(help="Of a store: its run's test cases, or all.")
    ] = "test",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write class probabilities.")
    ] = False,
    batch_size: BatchSizeOption = None,
    frames: FramesOption = False,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Segment scans: a mask in each scan's own geometry."""
    from macl.stages.predict import predict as run

    masks = run(
        paths,
        out,
        cases=cases,
        probabilities=probabilities,
        batch_size=batch_size,
        frames=frames,
        device=device.value,
    )
    _print_result(as_json, {"masks": masks})
    stores = [path for path in paths if (path / "store.json").is_file()]
    if stores:
        _next(("evaluate", out, stores[0], "--out", out.parent / "cases.csv"))


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of masks.")],
    truth: Annotated[
        Path,
        typer.Argument(help="Folder of true masks, a source in a known layout, or a store."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Table to write (.csv).")],
    convention: Annotated[
        Literal["strict", "paper"],
        typer.Option(
            help="strict: whole scans, in mm, and misses count. paper: as the release measures."
        ),
    ] = "strict",
    as_json: JsonOption = False,
) -> None:
    """Score masks against the truth, per case and class.

    Dice, Jaccard, HD95 and ASD.
    """
    from macl.records.scores import render, summarise
    from macl.stages.evaluate import evaluate as run

    summary = summarise(run(predictions, truth, out, convention=convention), convention)
    _print_result(as_json, {"table": out, **summary}, render(summary))
    if (out.parent / "run.json").is_file():
        _next(("report", out.parent, "--out", "report.html"))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run.", show_default=False)],
    to: Annotated[
        Literal["nnunet", "nnssl", "torch", "onnx", "macl-release"],
        typer.Option(
            help="nnunet: for -pretrained_weights. nnssl: for nnUNetv2_train_pretrained. torch: "
            "safetensors and JSON. onnx: a segmenter's graph. macl-release: as MACL's authors save "
            "weights."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write; a model card goes beside it.")],
    plans: Annotated[
        Path | None,
        typer.Option(help="nnunet: the nnUNetPlans.json to train with. Default: the run's."),
    ] = None,
    configuration: Annotated[
        str | None, typer.Option(help="nnunet: configuration of the plans. Default: the run's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's weights for another program.

    A model card is written beside them.
    """
    from macl.stages.export import export as run_export

    files = run_export(run, out, to=to, plans=plans, configuration=configuration)
    _print_result(as_json, {"files": files})


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A store or a run.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Read all of a store or a run and compare it with its checksums."""
    from macl.stages.check import check as run

    checked = run(path)
    about = {"path": path, "checked": checked}
    _print_result(as_json, about, f"{path} is as it was written: {checked}.")


@app.command(cls=_CommandWithSettings)
def profile(
    method: Annotated[str, typer.Option(help="How to pre-train.")] = "macl",
    recipe: RecipeOption = None,
    overrides: SetOption = [],  # noqa: B006
    store: Annotated[Path | None, typer.Option(help="Store to estimate the whole run for.")] = None,
    channels: Annotated[int, typer.Option(min=1, help="Image channels, if no store is named.")] = 1,
    patches: Annotated[
        int | None,
        typer.Option(min=1, help="Patches per epoch (2D: slices), if no store is named."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 5,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Measure what pre-training costs on this machine.

    Time per part of a step, and memory.
    """
    from macl.stages.profile import profile as run
    from macl.stages.profile import render

    figures = run(
        method=method,
        recipe=recipe,
        overrides=overrides,
        store=store,
        channels=channels,
        patches=patches,
        steps=steps,
        device=device.value,
    )
    _print_result(as_json, figures, render(figures))


@app.command()
def benchmark(
    grid: Annotated[
        Path, typer.Argument(help="Grid of methods, label budgets, recipes and seeds (.toml).")
    ],
    out: Out,
    device: DeviceOption = Device.auto,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes that share the cells; default: one."),
    ] = None,
    submit: Annotated[
        Literal["slurm", "local"] | None,
        typer.Option("--submit", help="Run the cells as jobs of a SLURM cluster (macl[slurm])."),
    ] = None,
    job_setting: Annotated[
        list[str] | None,
        typer.Option(
            "--job-setting", help="Of a job: NAME=VALUE, as submitit takes them; repeatable."
        ),
    ] = None,
    append_to: Annotated[
        Path | None,
        typer.Option("--append-to", help="Also add one row for each finished run to this table."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run and compare a grid of methods, label budgets and seeds.

    Finished cells are kept: the same command goes on.
    """
    from macl.workflows.benchmark import benchmark as run

    result = run(
        grid,
        out,
        device=device.value,
        workers=workers,
        submit=submit,
        job_settings=job_setting or (),
        append_to=append_to,
    )
    about = {
        "cells": result.cells,
        "finished": {name: cell.summaries for name, cell in result.finished.items()},
        "failed": result.failed,
    }
    _print_result(as_json, about, result.summary)
    if not result.complete:
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs to show side by side.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Page to write (.html).")] = Path(
        "report.html"
    ),
    volumes: Annotated[
        bool,
        typer.Option(
            "--volumes/--no-volumes",
            help="Hold the test cases' volumes in the page, the lowest Dice first, up to 8 MB.",
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page about runs."""
    from macl.stages.report import report as run

    page = run(runs, out, volumes=volumes)
    _print_result(as_json, {"page": page, "numbers": page.with_suffix(".json")})


@app.command()
def settings(
    name: Annotated[
        str | None,
        typer.Argument(help="pretrain, finetune, selftrain, a method or a network."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Of a stage: show the values of this recipe.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the settings of a stage, a method or a network."""
    from macl.stages import settings as stage

    if name is None:
        parts = stage.overview()
        _print_result(as_json, parts, stage.render_overview(parts))
        return
    catalogue = stage.settings(name, recipe)
    _print_result(as_json, stage.by_name(catalogue), stage.render(catalogue))


def _how_to_continue(words: list[str]) -> str:
    """What to call after an interruption."""
    given = dict(pairwise(words))
    is_training = words[:1] in (["pretrain"], ["finetune"], ["selftrain"])
    if not is_training or not (Path(given.get("--out", "")) / "run.json").is_file():
        return "Run the same command again to continue."
    kept = [
        word for name in ("--out", "--devices") if name in given for word in (name, given[name])
    ]
    return f"To continue: macl {shlex.join([words[0], *kept, '--resume'])}"


def main() -> None:
    """Entry point: what a user can mend is one sentence, with exit code 1; a bug a traceback."""
    # Otherwise PyTorch's idle threads spin: beside another busy program a step takes ten times as
    # long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    write_plain_where_needed()
    end_on_sigterm()
    # Wherever it stands, --quiet is an option of macl, not of the command.
    words = [word for word in sys.argv[1:] if word != "--quiet"]
    quiet = ["--quiet"] if len(words) < len(sys.argv) - 1 else []
    try:
        app([*quiet, *words], prog_name="macl")
    except Exception as error:
        # Not `say`, which is silent in all processes but the first: any of them may have failed.
        print(without_control(f"macl: {describe(error)}"), file=sys.stderr, flush=True)
        exit_rank(1)
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer turns Ctrl-C into 130 without a message; a launcher of processes ends with either.
        code = end.code if isinstance(end, SystemExit) else 130
        if code not in (130, 143):
            raise
        code = 143 if code == 143 else exit_code()
        how = "terminated" if code == 143 else "interrupted"
        # The processes of one training leave this to what started them.
        if this_rank().world_size == 1:
            warn(f"macl: {how}. {_how_to_continue(words)}")
        exit_rank(code)
