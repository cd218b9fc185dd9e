"""From scans to a store and a split: `macl inspect`, `prepare`, `split`; and `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from macl.cli.app import app, name_next, print_result
from macl.cli.options import (
    FramesOption,
    GroupOption,
    JsonOption,
    LabelsOption,
    PatientsOption,
    SeedOption,
    StoreArgument,
    WorkersOption,
)
from macl.utils.errors import MaclError


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
    print_result(as_json, description, render(description))
    if description["kind"] == "source":
        given = {"--reader": reader, "--patients": patients, "--labels": labels}
        words = [word for name, value in given.items() if value for word in (name, value)]
        name_next(("prepare", path, "my.store", *words, *(["--frames"] if frames else [])))


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
    print_result(as_json, about)
    if any(case.labelled for case in index.cases):
        name_next(("split", store, "--out", "my.json"))
    else:
        name_next(("pretrain", store, "--out", "runs/macl"))
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
        name_next(("pretrain", store, "--split", out, "--out", "runs/macl"))
    elif test is not None:
        raise MaclError("--folds tests everybody once, so --test has no meaning: give only one.")
    else:
        splits = stage.folds(store, out, count=folds, **options)
        drawn = {out.with_name(f"{split.name}.json"): split for split in splits}
        name_next(("pretrain", store, "--split", next(iter(drawn)), "--out", "runs/macl-fold1"))
    about = {str(file): split.model_dump(mode="json") for file, split in drawn.items()}
    print_result(as_json, {"splits": about})


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A store or a run.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Read all of a store or a run and compare it with its checksums."""
    from macl.stages.check import check as run

    checked = run(path)
    about = {"path": path, "checked": checked}
    print_result(as_json, about, f"{path} is as it was written: {checked}.")
