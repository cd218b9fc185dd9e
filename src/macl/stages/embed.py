"""Store + a run's encoder → features of every slice, or volume window, and of every case."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from macl.data.store import Store
from macl.inference.embedding import CaseFeatures, Embedder
from macl.inference.scans import require_same_preparation
from macl.plugins import find
from macl.records.runs import read_record
from macl.utils.errors import MaclError
from macl.utils.files import AnyPath, atomic_path, clear_unfinished_copies
from macl.utils.progress import progress, say


def embed(
    store: AnyPath,
    out: AnyPath,
    *,
    run: AnyPath,
    batch_size: int | None = None,
    device: str = "auto",
) -> dict[str, np.ndarray]:
    """Write what a run's encoder makes of every scan in a store: the mean of its bottleneck.

    The file holds, for M cases and N slices (2D) or windows of the training's patch (3D):

    - `case_features` (M, F) float32, the mean over a case's slices or windows;
    - `case_names`, `patients` (M,) text, `labelled` (M,) bool;
    - `features` (N, F) float32 and `case_of` (N,) int64, the row of the case in the above;
    - `starts` (N, 3) int64, the first slice, row and column of each in the store's volume;
    - `run` and `weights_sha256`, text.

    Args:
        store: folder made by `prepare`, with the settings of the run's.
        out: file to write (.npz); `numpy.load` reads it.
        run: a finished run of any kind.
        batch_size: slices or windows at a time; None: as `predict` takes.
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        What the file holds.

    Raises:
        MaclError: the run is missing or not finished, the store does not fit it, or `out` is no
            .npz file.
    """
    store, out, run = Path(store), Path(out), Path(run)
    if out.suffix != ".npz":
        raise MaclError(f"--out {out} should be a file that ends in .npz.")
    opened, record = Store.open(store), read_record(run)
    require_same_preparation(opened, record)
    embedder = Embedder(run, record, find("models", record.settings["backbone"]), device)
    found: list[CaseFeatures] = []
    with progress("Embedding", len(opened.cases)) as advance:
        for name, case in opened.cases.items():
            found.append(embedder.embed(opened.read(name), case.normalisation, batch_size))
            advance(note=name)
    cases = opened.index.cases
    counts = [len(features.windows) for features in found]
    contents = {
        "case_features": np.stack([features.mean for features in found]),
        "case_names": np.array([case.name for case in cases]),
        "patients": np.array([case.patient for case in cases]),
        "labelled": np.array([case.labelled for case in cases]),
        "features": np.concatenate([features.windows for features in found]),
        "case_of": np.repeat(np.arange(len(cases)), counts),
        "starts": np.concatenate([features.starts for features in found]),
        "run": np.array(str(run)),
        "weights_sha256": np.array(record.weights_sha256),
    }
    clear_unfinished_copies(out)
    with atomic_path(out) as aside:
        np.savez(aside, **contents)
    what = "slices" if len(record.patch) == 2 else "windows"
    width = contents["features"].shape[1]
    say(f"Wrote {width} features of {sum(counts)} {what} and {len(cases)} cases to {out}.")
    return contents
