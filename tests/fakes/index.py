"""A store's index without arrays, for whatever asks only who is in the store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from macl.config.settings import PrepareSettings
from macl.data.store import write_array
from macl.data.store_index import (
    ArrayKind,
    Normalisation,
    Orientation,
    StoredArray,
    StoredCase,
    StoreIndex,
)
from macl.io.geometry import Geometry
from macl.utils.files import write_text


def stored_case(name: str, patient: str, labelled: bool = True) -> StoredCase:
    kinds: dict[ArrayKind, tuple[int, ...]] = {"image": (1, 2, 4, 4)}
    if labelled:
        kinds["label"] = (2, 4, 4)
    return StoredCase(
        name=name,
        patient=patient,
        channels=1,
        size=(2, 4, 4),
        spacing_mm=None,
        geometry=Geometry(
            size=(4, 4, 2),
            spacing=(1, 1, 1),
            origin=(0, 0, 0),
            direction=(1, 0, 0, 0, 1, 0, 0, 0, 1),
            spacing_known=False,
        ),
        orientation=Orientation(
            plane="axial",
            permutation=(0, 1, 2),
            flipped=(False, False, False),
            scanned_size=(2, 4, 4),
        ),
        normalisation=Normalisation(low=(0.0,), high=(1.0,), mean=(0.0,), deviation=(1.0,)),
        arrays={
            kind: StoredArray(
                file=f"cases/{name}.{kind}.b2nd", shape=shape, dtype="uint8", sha256=name
            )
            for kind, shape in kinds.items()
        },
    )  # fmt: skip


def write(store: Path, cases: Iterable[StoredCase]) -> Path:
    """Write the index of a store that holds `cases`, and nothing else of it."""
    index = StoreIndex(
        reader="folder",
        modality="MR",
        channels=("image",),
        classes=("background", "organ"),
        label_values=(0, 1),
        prepared=PrepareSettings(normalisation="zscore"),
        cases=tuple(cases),
    )
    store.mkdir(parents=True, exist_ok=True)
    write_text(store / "store.json", index.model_dump_json())
    return store


def hearts(store: Path, patients: int = 100) -> Path:
    """ACDC's people: two labelled cases each."""
    return write(
        store,
        (
            stored_case(f"patient{number:03d}_frame{frame}", f"patient{number:03d}")
            for number in range(1, patients + 1)
            for frame in ("01", "12")
        ),
    )


def many(store: Path, cases: int) -> Path:
    """A store of so many cases, which all share the arrays of the first."""
    store.mkdir(parents=True)
    slices = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    first = stored_case("case00000", "patient00000")
    arrays = {
        kind: write_array(store, first.name, kind, slices.reshape(entry.shape))
        for kind, entry in first.arrays.items()
    }
    named = (
        first.model_copy(update={"name": f"case{n:05d}", "patient": f"patient{n // 2:05d}"})
        for n in range(cases)
    )
    return write(store, (case.model_copy(update={"arrays": arrays}) for case in named))
