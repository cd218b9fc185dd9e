"""What a pre-trained encoder sees: `macl embed` and `choose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from macl.cli.app import app, print_result
from macl.cli.options import (
    BatchSizeOption,
    Device,
    DeviceOption,
    EncoderRun,
    GroupOption,
    JsonOption,
    StoreArgument,
)
from macl.utils.progress import say


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
    print_result(as_json, {"file": out, "arrays": shapes})


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
        typer.Option(
            help="Split file or name; its test, validation and reserved people are left out."
        ),
    ] = None,
    group: GroupOption = "patient",
    batch_size: BatchSizeOption = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Rank unlabelled people: whom to label first.

    The people who best represent all others in the features of a run come first.
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
    print_result(as_json, stage.about(chosen, store, run, strategy), stage.render(chosen))
    say(
        "Mean distance: of everybody to the nearest person who is labelled or chosen so far; after "
        "the first choice it is 100 %.\n"
        "Next: label them in this order, then macl prepare again, with the labels."
    )
