"""What a segmenter gives: `macl predict`, `evaluate`, `report` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from macl.cli.app import app, name_next, print_result
from macl.cli.options import (
    BatchSizeOption,
    Device,
    DeviceOption,
    FramesOption,
    JsonOption,
    Out,
)


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
    print_result(as_json, {"masks": masks})
    stores = [path for path in paths if (path / "store.json").is_file()]
    if stores:
        name_next(("evaluate", out, stores[0], "--out", out.parent / "cases.csv"))


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
    print_result(as_json, {"table": out, **summary}, render(summary))
    if (out.parent / "run.json").is_file():
        name_next(("report", out.parent, "--out", "report.html"))


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
    print_result(as_json, {"page": page, "numbers": page.with_suffix(".json")})


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
    print_result(as_json, {"files": files})
