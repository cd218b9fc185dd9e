"""The sections of a report as plain values: runs, overlays of their cases, and their data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from macl.config.settings import PrepareSettings
from macl.data.store import Store
from macl.data.store_index import StoreIndex
from macl.pages.augmented import AugmentedPatch, augmented_patches
from macl.pages.charts import LineChart, line_chart
from macl.pages.comparison import Comparison
from macl.pages.log_columns import LogColumn, log_columns
from macl.pages.overlays import (
    OVERLAY_KINDS,
    CaseSlice,
    OverlayKind,
    choose_cases,
    crop_around,
    draw,
    fullest_slice,
)
from macl.pages.reported_run import Missing, ReportedRun, flat_settings
from macl.records.scores import ScoreRow
from macl.utils.errors import MaclError
from macl.utils.text import format_duration, format_size

MOST_CASES_LISTED = 300
TRANSFER_OUTCOMES = ("loaded", "adapted", "fresh", "refused")


@dataclass(frozen=True)
class Overlay:
    """A drawn case: its role in the run, its Dice, and JPEG files by kind."""

    role: str
    dice: float
    slice: CaseSlice
    panels: Mapping[OverlayKind, bytes]


@dataclass(frozen=True)
class Section:
    """What the page shows of one run, beyond the run itself.

    Attributes:
        number: of the section, for links to it.
        charts: every column of the log, drawn.
        augmented: training patches before and after augmentation.
        not_drawn: cases and patches without a picture, and why.
    """

    number: int
    run: ReportedRun
    title: str
    charts: tuple[tuple[LogColumn, LineChart], ...]
    overlays: tuple[Overlay, ...]
    augmented: tuple[AugmentedPatch, ...]
    not_drawn: tuple[Missing, ...]

    @property
    def settings(self) -> dict[str, str]:
        """The resolved settings by dotted name."""
        return flat_settings(self.run.record.settings)

    @property
    def steps_done(self) -> int:
        """Steps in the log."""
        return self.run.log["loss"][-1][0] if "loss" in self.run.log else 0

    @property
    def epochs(self) -> str:
        """Epochs in the log, in words."""
        return f"{self.run.log['epoch'][-1][1]:.4g} epochs" if "epoch" in self.run.log else ""

    @property
    def duration(self) -> str:
        """The training time in words."""
        return format_duration(self.run.record.seconds)

    @property
    def listed_scores(self) -> tuple[ScoreRow, ...]:
        """The rows of scores to list: of all cases, or of the `MOST_CASES_LISTED` lowest."""
        return self.run.scores.of_lowest(MOST_CASES_LISTED) if self.run.scores else ()

    @property
    def patches_per_second(self) -> float | None:
        """The median over the log, which compiling and saving do not move; None where it has
        none."""
        logged = [value for _, value in self.run.log.get("patches_per_second", ())]
        return median(logged) if logged else None

    @property
    def transfer(self) -> dict[str, Any] | None:
        """The transfer table, with its outcomes counted; None where there is none."""
        table = self.run.transfer
        if table is None:
            return None
        outcomes = [tensor["outcome"] for tensor in table["tensors"]]
        counts = [(name, outcomes.count(name)) for name in TRANSFER_OUTCOMES if name in outcomes]
        return {"source": table["source"], "tensors": table["tensors"], "counts": counts}


def section_of(number: int, run: ReportedRun, title: str) -> Section:
    """What the page shows of a run; cases that cannot be drawn are named."""
    columns = log_columns(run.log, run.record.quantities)
    uniform = run.record.uniform_losses
    charts = tuple(
        (column, line_chart(run.log[column.name], uniform.get(column.name))) for column in columns
    )
    overlays, not_drawn = _overlays(run)
    augmented: tuple[AugmentedPatch, ...] = ()
    if run.store:
        try:
            augmented = augmented_patches(run.store, run.record)
        except MaclError as error:
            sentence = f"The augmentation is not drawn: {error}"
            not_drawn = (*not_drawn, Missing(sentence))
    return Section(number, run, title, charts, overlays, augmented, not_drawn)


def _overlays(run: ReportedRun) -> tuple[tuple[Overlay, ...], tuple[Missing, ...]]:
    if run.scores is None or run.store is None or not run.predictions.is_dir():
        return (), ()
    means = run.scores.dice_by_case()
    drawn: list[Overlay] = []
    not_drawn: list[Missing] = []
    for role, case in choose_cases(means):
        try:
            part = _slice(run, run.store, case)
        except MaclError as error:
            not_drawn.append(Missing(f"{role} is not drawn: {error}"))
            continue
        crop = crop_around([part])
        panels: dict[OverlayKind, bytes]
        panels = {kind: draw([(kind, part)], crop, file_format="jpeg") for kind in OVERLAY_KINDS}
        drawn.append(Overlay(role, means[case], part, panels))
    return tuple(drawn), tuple(not_drawn)


def _slice(run: ReportedRun, store: Store, case: str) -> CaseSlice:
    return fullest_slice(store, case, run.mask(case), run.record.label_values)


# ---------------------------------------------------------------- one case, every run


@dataclass(frozen=True)
class SideBySide:
    """One slice of one case in every run.

    Attributes:
        slice: the slice, as the first run predicts it.
        panels: (JPEG file, caption) of the scan, of the truth, then of each run's prediction.
    """

    slice: CaseSlice
    classes: tuple[str, ...]
    panels: tuple[tuple[bytes, str], ...]


def side_by_side(comparison: Comparison) -> SideBySide | None:
    """The median case by mean Dice over the runs, in every run.

    None for fewer than two runs with masks, for runs of different stores, and where the case cannot
    be drawn.
    """
    rows = [
        row
        for row in comparison.rows
        if all(run.store and run.predictions.is_dir() for run in row.runs)
    ]
    if len(rows) < 2 or len({row.run.record.store_checksum for row in rows}) > 1:
        return None
    means = [row.scores.dice_by_case() for row in rows]
    shared = set.intersection(*map(set, means))
    ranked = sorted(shared, key=lambda case: (sum(mean[case] for mean in means), case))
    if not ranked:
        return None
    case = ranked[len(ranked) // 2]
    try:
        testers = [row.tester(case) for row in rows]
        slices = [_slice(run, run.store, case) for run in testers if run.store]
    except MaclError:
        return None
    crop = crop_around(slices)
    captions = [
        f"{row.title}: {100 * mean[case]:.1f}" for row, mean in zip(rows, means, strict=True)
    ]
    pictures: list[tuple[OverlayKind, CaseSlice, str]] = [
        ("scan", slices[0], "Scan"),
        ("truth", slices[0], "Truth"),
        *(("prediction", part, caption) for part, caption in zip(slices, captions, strict=True)),
    ]
    return SideBySide(
        slices[0],
        rows[0].run.record.classes,
        tuple(
            (draw([(kind, part)], crop, file_format="jpeg"), caption)
            for kind, part, caption in pictures
        ),
    )


# ---------------------------------------------------------------- the data


@dataclass(frozen=True)
class StoreContents:
    """What a store holds.

    Attributes:
        slices_per_case: the fewest and the most slices of a case.
        slice_sizes: the smallest and the largest slice, in voxels.
        spacings: the range of spacings.
        class_shares: share of all labelled voxels per class; empty where they were not counted.
    """

    index: StoreIndex
    patients: int
    labelled: int
    slices: int
    slices_per_case: str
    slice_sizes: str
    spacings: str
    class_shares: tuple[float, ...]


@dataclass(frozen=True)
class StoreFacts:
    """The data that a run was trained on.

    Attributes:
        path: the store's folder, as the user gave it.
        prepared: how the scans were prepared, one fact a line.
        contents: None where the store is gone or has changed.
    """

    path: str
    modality: str
    channels: tuple[str, ...]
    reader: str
    classes: tuple[str, ...]
    label_values: tuple[int, ...]
    prepared: tuple[str, ...]
    contents: StoreContents | None


def store_facts(run: ReportedRun) -> StoreFacts:
    """The data of a run: from its record, and from the store while that is unchanged."""
    record = run.record
    classes, label_values = record.classes, record.label_values
    if run.store:
        classes, label_values = run.store.index.classes, run.store.index.label_values
    return StoreFacts(
        path=record.store,
        modality=record.modality,
        channels=record.channels,
        reader=record.reader,
        classes=classes,
        label_values=label_values,
        prepared=_prepared(record.prepared),
        contents=_contents(run.store.index) if run.store else None,
    )


def _prepared(settings: PrepareSettings) -> tuple[str, ...]:
    if settings.plan:
        return (f"as {settings.plan}",)
    spacing = settings.spacing_mm
    if isinstance(spacing, tuple):
        resampled = f"{' × '.join(f'{step:g}' for step in spacing)} mm"
    elif isinstance(spacing, str):
        resampled = spacing
    else:
        resampled = f"{spacing:g} mm in plane" if spacing else "as scanned"
    return (
        f"plane: {settings.plane}",
        f"spacing: {resampled}",
        f"normalisation: {settings.normalisation}",
    )


def _contents(index: StoreIndex) -> StoreContents:
    cases = index.cases
    counted = [case.class_voxels for case in cases if case.class_voxels]
    totals = [sum(column) for column in zip(*counted, strict=True)]
    return StoreContents(
        index=index,
        patients=len({case.patient for case in cases}),
        labelled=sum(case.labelled for case in cases),
        slices=sum(case.slices for case in cases),
        slices_per_case=_range([str(count) for count in sorted(case.slices for case in cases)]),
        slice_sizes=_range([format_size(size) for size in sorted(case.size[1:] for case in cases)]),
        spacings=_spacings([case.spacing_mm for case in cases if case.spacing_mm]),
        class_shares=tuple(total / sum(totals) for total in totals),
    )


def _spacings(spacings: Sequence[tuple[float, ...]]) -> str:
    if not spacings:
        return "spacing unknown"
    apart, row, column = (
        _range([f"{spacing:.3g}" for spacing in sorted(axis)], " – ")
        for axis in zip(*spacings, strict=True)
    )
    return f"{row} × {column} mm, {apart} mm apart"


def _range(sorted_texts: Sequence[str], between: str = " to ") -> str:
    """The first and the last text, or one where they are the same."""
    return between.join(dict.fromkeys((*sorted_texts[:1], *sorted_texts[-1:])))
