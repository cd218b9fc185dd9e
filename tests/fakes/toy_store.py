"""A store of small synthetic cases: a disc within a bright ring, on a textured background.

Slices differ by their height: the disc fills more of the ring, and the background brightens, the
higher they lie. The wavelength of the texture and the ring's size are the patient's.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import blosc2
import numpy as np

from macl.config.settings import PrepareSettings
from macl.data.store import Store
from macl.data.store_index import Normalisation, Orientation, StoredArray, StoredCase, StoreIndex
from macl.io.geometry import Geometry
from macl.preprocessing.orientation import choose_orientation

CLASSES = ("background", "ring", "disc")


def write_toy_store(
    folder: Path,
    *,
    patients: int = 6,
    slices: int = 6,
    more_slices: int = 0,
    side: int = 64,
    channels: int = 1,
    unlabelled: int = 0,
    seed: int = 0,
) -> Store:
    """Write and open a store of `patients` cases, the last `unlabelled` of them without label.

    Cases differ in size: of three in a row, the second has `more_slices` more than the first, and
    the third `more_slices` more than the second.
    """
    (folder / "cases").mkdir(parents=True)
    random = np.random.default_rng(seed)
    cases = []
    for number in range(patients):
        # Cases differ in size, so that cropping and padding are exercised.
        rows, columns = side + 4 * (number % 3), side - 6 * (number % 2)
        image, label = _case(random, slices + more_slices * (number % 3), rows, columns, channels)
        arrays = (
            {"image": image}
            if number >= patients - unlabelled
            else {"image": image, "label": label}
        )
        cases.append(_stored(folder, f"patient{number + 1:03d}", arrays))
    index = StoreIndex(
        reader="folder",
        modality="MR",
        channels=tuple(f"channel{c}" for c in range(channels)),
        classes=CLASSES,
        label_values=(0, 1, 2),
        prepared=PrepareSettings(normalisation="zscore"),
        cases=tuple(cases),
    )
    (folder / "store.json").write_text(index.model_dump_json(indent=1))
    return Store.open(folder)


def on_its_side(store: Store, case: str, direction: tuple[float, ...]) -> Store:
    """That case alone, with the same slices, as if its scan lay on its side and ran the other way;
    `direction` is the scan's, as in `Geometry`."""
    slices, rows, columns = store.case(case).size
    geometry = Geometry(
        size=(rows, slices, columns),
        spacing=(1.5, 5.0, 1.0),
        origin=(1.0, 2.0, 3.0),
        direction=direction,
        spacing_known=True,
    )
    changed = store.case(case).model_copy(
        update={"geometry": geometry, "orientation": choose_orientation(geometry, "axial")}
    )
    return Store(store.path, store.index.model_copy(update={"cases": (changed,)}))


def _case(
    random, slices: int, rows: int, columns: int, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Image (C, Z, Y, X) and label (Z, Y, X) of a patient with a radius and texture of its own."""
    y, x = np.mgrid[:rows, :columns]
    centre = np.array([rows, columns]) / 2 + random.uniform(-6, 6, 2)
    distance = np.hypot(y - centre[0], x - centre[1])
    radius = random.uniform(0.20, 0.28) * min(rows, columns)
    wavelength = random.uniform(2, 8)
    texture = 20 * np.sin(2 * np.pi * x / wavelength + random.uniform(0, 6)) + 10 * np.cos(y / 7)
    height = (np.arange(1, slices + 1) / slices)[:, None, None]
    size = radius * (0.6 + 0.4 * np.sin(np.pi * height))
    label = (distance < size).astype(np.uint8)
    label[distance < (0.35 + 0.45 * height) * size] = 2
    brightness = np.array([20.0, 170.0, 110.0])[label] + 70 * height * (label == 0)
    image = (brightness + texture)[:, None] + random.normal(0, 8, (slices, channels, rows, columns))
    return image.clip(0, 255).round().astype(np.int16).swapaxes(0, 1), label


def _stored(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> StoredCase:
    entries = {}
    for kind, array in arrays.items():
        file = f"cases/{name}.{kind}.b2nd"
        array = np.ascontiguousarray(array)
        blosc2.asarray(array, urlpath=str(folder / file), mode="w")
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        entries[kind] = StoredArray(
            file=file, shape=array.shape, dtype=str(array.dtype), sha256=digest
        )
    image = arrays["image"]
    channels, slices, rows, columns = image.shape
    axes = (1, 2, 3)
    floats = image.astype(float)
    return StoredCase(
        name=name,
        patient=name,
        channels=channels,
        size=(slices, rows, columns),
        spacing_mm=(5.0, 1.0, 1.0),
        geometry=Geometry(
            size=(columns, rows, slices),
            spacing=(1.0, 1.0, 5.0),
            origin=(0.0, 0.0, 0.0),
            direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
            spacing_known=True,
        ),
        orientation=Orientation(
            plane="axial",
            permutation=(0, 1, 2),
            flipped=(False, False, False),
            scanned_size=(slices, rows, columns),
        ),
        normalisation=Normalisation(
            low=tuple(floats.min(axes)),
            high=tuple(floats.max(axes)),
            mean=tuple(floats.mean(axes)),
            deviation=tuple(floats.std(axes)),
        ),
        arrays=entries,
    )
