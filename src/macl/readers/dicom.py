"""A tree of DICOM series, whatever its folders are called, grouped by what the headers say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from macl.io.dicom import SUFFIXES
from macl.io.dicom_series import (
    DEEPEST,
    Series,
    contains_dicom,
    find_dicom_files,
    group_into_series,
)
from macl.io.source import Case, Source
from macl.io.volume import suffix_of
from macl.readers._filenames import ignored_note, keep_unique_names
from macl.readers._reader import Reader
from macl.utils.errors import MaclError
from macl.utils.files import files_below


class Dicom(Reader):
    """DICOM as scanners and archives export it, without labels.

    Modality: as the headers say. Slices are sorted by position; tilted gantries, missing or doubled
    slices and several frames in one file are refused with the reason. Names and birth dates are
    kept out of everything that is written; patient ids are hashed.
    """

    def evidence(self, source: Path) -> tuple[int, str] | None:
        """DICOM files, and no scans of another format, which might be their labels."""
        suffixes = {suffix_of(path) for path in files_below(source, DEEPEST)}
        if suffixes <= {None, *SUFFIXES} and contains_dicom(source):
            return 20, "DICOM files and no other scans"
        return None

    def read(self, source: Path) -> Source:
        """Every series as a case.

        Raises:
            MaclError: there is no DICOM file with an image.
        """
        files, others = find_dicom_files(source)
        all_series, without_image = group_into_series(files)
        if not all_series:
            raise MaclError(f"{source} holds no DICOM file with an image: check the folder.")
        names = [_case_name(series, source) for series in all_series]
        uses = Counter(names)
        cases: list[Case] = []
        for number, (series, name) in enumerate(zip(all_series, names, strict=True), start=1):
            unique = name if uses[name] == 1 else f"{name}_{number}"
            folders = series.folder.relative_to(source).parts
            cases.append(Case(unique, (series.scan,), patient=folders[0] if folders else unique))
        kept, refused = keep_unique_names(cases, {})
        return Source(
            reader=self.name,
            cases=kept,
            refused=refused,
            notes=(
                "Patients are those that the headers name; if a header names none, the first "
                "folder that holds the scan.",
                *ignored_note(without_image, source, "DICOM without an image"),
                *ignored_note(others, source, "not DICOM"),
            ),
        )


def _case_name(series: Series, source: Path) -> str:
    """The folder's path; with the series' number if the folder holds several."""
    folders = "_".join(series.folder.relative_to(source).parts) or source.resolve().name
    return folders if series.alone_in_folder else f"{folders}_series{series.number}"


PLUGIN = Dicom
