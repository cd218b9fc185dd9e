"""The whole path in one call: `macl demo`, `run` and `benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from macl.cli.app import EXAMPLES, app, print_result
from macl.cli.options import (
    Device,
    DeviceOption,
    JsonOption,
    LabelsOption,
    Out,
    PatientsOption,
)


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
    from macl.workflows.demo.command import SLICES, VOLUMES
    from macl.workflows.demo.command import demo as run

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
    Interrupt it at any time: the same command resumes.
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
        print_result(as_json, as_values(result), summary(result))


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

    Finished cells are kept, and the same command resumes.
    """
    from macl.workflows.benchmark.command import benchmark as run

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
    print_result(as_json, about, result.summary)
    if not result.complete:
        raise typer.Exit(1)
