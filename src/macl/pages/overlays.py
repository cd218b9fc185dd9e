"""Truth and prediction drawn over one slice of a case."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from macl.data.store import Store
from macl.utils.errors import MaclError, RefusedCaseError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (
    "#f0a030", "#4aa8e8", "#3fc08d", "#e8649a", "#e9e15a",
    "#a98bf0", "#ee6a50", "#7fdde0", "#b7c26a", "#c9a27c",
)  # fmt: skip
"""Colours of classes 1, 2, …, in turn: easy to tell apart, also on grey."""

PANEL_INCHES = 3.2
DOTS_PER_INCH = 120
FILL_OPACITY = 0.45
MARGIN_FRACTION = 0.35
SMALLEST_CROP = 48
CAPTION_INCHES = 0.28

OverlayKind: TypeAlias = Literal["scan", "truth", "prediction"]
Crop: TypeAlias = tuple[slice, slice]
OVERLAY_KINDS: tuple[OverlayKind, ...] = ("scan", "truth", "prediction")


@dataclass(frozen=True)
class CaseSlice:
    """One slice of a case on the store's grid, with truth and prediction.

    Attributes:
        case: its name.
        number: the slice, counted from 1, of `slices`.
        image: (rows, columns) float in [0, 1].
        truth, prediction: (rows, columns) integers 0…K.
        aspect: height of a pixel over its width.
    """

    case: str
    number: int
    slices: int
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    aspect: float


def colour_of(label: int) -> str:
    """The colour of class `label`, from 1."""
    return COLOURS[(label - 1) % len(COLOURS)]


def choose_cases(means: Mapping[str, float]) -> list[tuple[str, str]]:
    """(role, case) of the best, median and worst case by mean Dice; with few cases, fewer."""
    ranked = sorted(means, key=lambda case: (means[case], case))
    if len(ranked) <= 1:
        return [("The only case", case) for case in ranked]
    best, worst = ("Best case", ranked[-1]), ("Worst case", ranked[0])
    median = ("Median case", ranked[len(ranked) // 2])
    return [best, median, worst] if len(ranked) > 2 else [best, worst]


def fullest_slice(store: Store, case: str, mask: Path, label_values: Sequence[int]) -> CaseSlice:
    """The slice of a case with the most true foreground; without truth, the most predicted.

    Args:
        mask: the prediction, on the scan's own grid, in the scan's own label values.
        label_values: those values, in the order of the store's labels 0…K.

    Raises:
        MaclError: the case is not in the store or has no label, or the mask cannot be read or lies
            on another grid.
    """
    from macl.preprocessing.orientation import spacing_of

    stored = store.case(case)
    truth = store.read(case, "label")
    prediction = read_prediction(store, case, mask, label_values)
    counted = truth if truth.any() else prediction
    number = int((counted > 0).sum(axis=(1, 2)).argmax())
    _, row_mm, column_mm = stored.spacing_mm or spacing_of(stored.geometry, stored.orientation)
    return CaseSlice(
        case=case,
        number=number + 1,
        slices=stored.slices,
        image=grey(store.read(case, "image", (slice(number, number + 1), None, None))[0, 0]),
        truth=truth[number],
        prediction=prediction[number],
        aspect=row_mm / column_mm,
    )


def read_prediction(store: Store, case: str, mask: Path, label_values: Sequence[int]) -> np.ndarray:
    """A predicted mask as labels 0…K on the store's grid, (Z, Y, X) uint8; see `fullest_slice`."""
    from macl.io.volume import read_label
    from macl.preprocessing.resampling import label_to_store_grid

    stored = store.case(case)
    try:
        volume = read_label(mask)
    except RefusedCaseError as error:
        raise MaclError(f"the mask {mask} cannot be used: {error}.") from None
    if volume.geometry.size != stored.geometry.size:
        raise MaclError(
            f"{mask} does not lie on the grid of the case {case!r}: predict again from this store."
        )
    values = volume.array[0]
    labels = np.zeros(values.shape, dtype=np.uint8)
    for label, value in enumerate(label_values):
        labels[values == value] = label
    return label_to_store_grid(labels, stored.orientation, stored.size)


def grey(image: np.ndarray) -> np.ndarray:
    """An image in [0, 1]: from the 0.5th to the 99.5th percentile."""
    low, high = (float(value) for value in np.percentile(image, (0.5, 99.5)))
    return np.clip((image.astype(np.float32) - low) / ((high - low) or 1.0), 0.0, 1.0)


def crop_around(slices: Sequence[CaseSlice]) -> Crop:
    """Rows and columns around everything labelled in versions of one slice, with a margin.

    A side is at least `SMALLEST_CROP` long, or the whole slice. Without labels all is kept.
    """
    labelled = np.any([(part.truth > 0) | (part.prediction > 0) for part in slices], axis=0)
    sides = []
    for axis, length in enumerate(labelled.shape):
        indices = np.flatnonzero(labelled.any(axis=1 - axis))
        low, high = (int(indices[0]), int(indices[-1]) + 1) if len(indices) else (0, length)
        wanted = max(SMALLEST_CROP, round((high - low) * (1 + 2 * MARGIN_FRACTION)))
        wanted = min(length, wanted)
        start = min(max(0, (low + high - wanted) // 2), length - wanted)
        sides.append(slice(start, start + wanted))
    return sides[0], sides[1]


def draw(
    panels: Sequence[tuple[OverlayKind, CaseSlice]],
    crop: Crop,
    captions: Sequence[str] = (),
    file_format: Literal["png", "jpeg"] = "png",
) -> bytes:
    """Draw panels side by side in one picture, each a slice within the crop.

    "scan" is the scan alone, "truth" fills the true structures, "prediction" the predicted ones;
    both outline the truth.

    Args:
        panels: what to draw, from left to right.
        crop: rows and columns to draw.
        captions: one above each panel; none: no room is left for them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = (side.stop - side.start for side in crop)
    height = PANEL_INCHES * rows * panels[0][1].aspect / columns
    band = CAPTION_INCHES if captions else 0.0
    size = (PANEL_INCHES * len(panels), height + band)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor="black")
    FigureCanvasAgg(figure)
    for number, (kind, part) in enumerate(panels):
        left, width = number / len(panels), 1 / len(panels)
        axes = figure.add_axes((left, 0.0, width, height / (height + band)))
        axes.set_axis_off()
        axes.imshow(part.image, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="lanczos")
        if kind != "scan":
            _fill(axes, part.truth if kind == "truth" else part.prediction)
            _outline(axes, part.truth)
        axes.set_xlim(crop[1].start - 0.5, crop[1].stop - 0.5)
        axes.set_ylim(crop[0].stop - 0.5, crop[0].start - 0.5)
        if captions:
            axes.set_title(captions[number], color="white", fontsize=8, pad=4)
    file = io.BytesIO()
    # JPEG: a PNG of a noisy scan is several times larger. Subsampled colours would blur outlines.
    options = {"quality": 85, "subsampling": 0, "optimize": True} if file_format == "jpeg" else {}
    figure.savefig(file, format=file_format, facecolor="black", pil_kwargs=options)
    return file.getvalue()


def _fill(axes: Axes, labels: np.ndarray) -> None:
    from matplotlib.colors import to_rgb

    layer = np.zeros((*labels.shape, 4))
    for label in np.unique(labels[labels > 0]):
        layer[labels == label] = (*to_rgb(colour_of(int(label))), FILL_OPACITY)
    axes.imshow(layer, aspect="auto", interpolation="nearest")


def _outline(axes: Axes, labels: np.ndarray) -> None:
    rows, columns = (np.arange(-1, length + 1) for length in labels.shape)
    for label in np.unique(labels[labels > 0]):
        inside = np.pad(labels == label, 1).astype(float)
        colour = colour_of(int(label))
        axes.contour(columns, rows, inside, levels=[0.5], colors=[colour], linewidths=1.2)
