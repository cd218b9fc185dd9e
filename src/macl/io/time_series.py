"""Time series as frames: every volume along the fourth axis a case of its own, of the same patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from macl.io.source import Case, Source
from macl.io.volume import read_header
from macl.utils.errors import MaclError, RefusedCaseError


def moments_of(case: Case) -> tuple[Case, ...]:
    """The moments of a case whose files are time series, as cases `<name>_frame01` …; none where its files are 3D.

    A label must be a series of as many moments.

    Raises:
        RefusedCaseError: a file's header cannot be read, or the files do not have equally many moments.
    """
    counts = [read_header(image).moments for image in case.images]
    if set(counts) == {1}:
        return ()
    if len(set(counts)) > 1:
        raise RefusedCaseError(f"its channels hold {', '.join(map(str, counts))} moments, where all must hold as many")
    moments = counts[0]
    if case.label and (labelled := read_header(case.label).moments) != moments:
        told = "one, and nothing tells which it shows" if labelled == 1 else str(labelled)
        raise RefusedCaseError(f"its image holds {moments} moments and its label {told}: save that frame by itself")
    digits = max(2, len(str(moments)))
    return tuple(replace(case, name=f"{case.name}_frame{index + 1:0{digits}}", frame=index) for index in range(moments))


def take_apart(source: Source) -> tuple[Source, Mapping[str, tuple[Case, ...]]]:
    """A source whose time series are taken apart, and for the name of each all its moments, in order.

    Every moment is a case; those that are cases of their own already stay as they are. What cannot be taken apart is
    refused.

    Raises:
        MaclError: the layout declares that a file's fourth axis holds channels.
    """
    if len(source.channels) > 1 and any(len(case.images) == 1 for case in source.cases):
        raise MaclError(
            f"--frames takes the fourth axis of a file as time, but this data set declares {len(source.channels)} "
            f"channels there ({', '.join(source.channels)}): leave it out."
        )
    cases = {case.name: case for case in source.cases}
    refused = dict(source.refused)
    series: dict[str, tuple[Case, ...]] = {}
    for case in source.cases:
        try:
            moments = moments_of(case)
        except RefusedCaseError as error:
            refused[case.name] = str(error)
            cases.pop(case.name, None)
            continue
        if moments:
            series[case.name] = moments
            cases.pop(case.name, None)
            cases = {moment.name: moment for moment in moments} | cases
    made = sum(case.frame is not None for case in cases.values())
    note = (
        f"The fourth axis is taken as time: {len(series)} series became {made} frames, counted from 1."
        if series
        else "No file here has a fourth axis, so that there are no frames to take."
    )
    ordered = tuple(sorted(cases.values(), key=lambda case: case.name))
    apart = replace(source, cases=ordered, refused=dict(sorted(refused.items())), notes=(*source.notes, note))
    return apart, series
