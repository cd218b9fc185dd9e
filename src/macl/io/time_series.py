"""Time series: each volume along the fourth axis becomes a case of its own, of the same patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from macl.io.source import Case, Source
from macl.io.volume import read_header
from macl.utils.errors import MaclError, RefusedCaseError


def frames_of(case: Case) -> tuple[Case, ...]:
    """The frames of a case whose files are time series, `<name>_frame01` …; () if they are 3D.

    A label must have as many time points as its image.

    Raises:
        RefusedCaseError: a file's header cannot be read, or the files have different numbers of
            time points.
    """
    counts = [read_header(image).time_points for image in case.images]
    if set(counts) == {1}:
        return ()
    if len(set(counts)) > 1:
        numbers = ", ".join(map(str, counts))
        raise RefusedCaseError(f"its channels have different numbers of time points: {numbers}")
    (time_points,) = set(counts)
    labelled = read_header(case.label).time_points if case.label else time_points
    if labelled != time_points:
        raise RefusedCaseError(
            f"its image has {time_points} time points and its label {labelled}: save the labelled "
            "frames as scans of their own"
        )
    digits = max(2, len(str(time_points)))
    return tuple(
        replace(case, name=f"{case.name}_frame{index + 1:0{digits}}", frame=index)
        for index in range(time_points)
    )


def split_time_series(source: Source) -> tuple[Source, Mapping[str, tuple[Case, ...]]]:
    """A source with every frame of its time series as a case, and the frames of each series.

    Frames that the source already has as cases stay as they are. Series that cannot be split are
    refused.

    Raises:
        MaclError: the layout declares that a file's fourth axis holds channels.
    """
    if len(source.channels) > 1 and any(len(case.images) == 1 for case in source.cases):
        raise MaclError(
            "--frames takes the fourth axis of a file as time, but this data set declares "
            f"{len(source.channels)} channels there ({', '.join(source.channels)}): leave it out."
        )
    cases = {case.name: case for case in source.cases}
    refused = dict(source.refused)
    series: dict[str, tuple[Case, ...]] = {}
    for case in source.cases:
        try:
            frames = frames_of(case)
        except RefusedCaseError as error:
            refused[case.name] = str(error)
            cases.pop(case.name, None)
            continue
        if frames:
            series[case.name] = frames
            cases.pop(case.name, None)
            cases = {frame.name: frame for frame in frames} | cases
    count = sum(case.frame is not None for case in cases.values())
    note = (
        f"Taking the fourth axis as time: {len(series)} series became {count} frames, numbered "
        "from 1."
        if series
        else "No file here has a fourth axis, so there are no frames."
    )
    split = replace(
        source,
        cases=tuple(sorted(cases.values(), key=lambda case: case.name)),
        refused=dict(sorted(refused.items())),
        notes=(*source.notes, note),
    )
    return split, series
