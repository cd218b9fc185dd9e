"""A tree of DICOM series, however its folders are called: files are grouped by the series that their headers name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from macl.io.dicom_series import DEEPEST, Series, dicom_files, holds_dicom, sort_into_series
from macl.io.source import Case, Source
from macl.readers._filenames import is_scan, one_of_each_name, passed_over
from macl.readers._reader import Reader
from macl.utils.errors import MaclError
from macl.utils.files import files_below


class Dicom(Reader):
    """DICOM as scanners and archives export it, without labels.

    Modality: as the headers say. Slices are sorted by position; tilted gantries, missing or doubled slices and frames in
    one file are refused with the reason. Names and birth dates are kept out of everything that is written; patients'
    ids are hashed.
    """


    def evidence(self, source: Path) -> tuple[int, str] | None:
        """DICOM files below, and no scans of another format, which might be their labels."""
        if any(is_scan(path) and not _by_name(path) for path in files_below(source, DEEPEST)):
            return None
        return (20, "DICOM files and no other scans") if holds_dicom(source) else None

    def read(self, source: Path) -> Source:
        """Every series as a case.

        Raises:
            MaclError: there is no DICOM file with an image.
        """
        files, others = dicom_files(source)
        series, without_image = sort_into_series(files)
        if not series:
            raise MaclError(f"{source} holds no DICOM file with an image: check the folder.")
        names = [_name(one, source) for one in series]
        taken = Counter(names)
        cases: list[Case] = []
        for index, (one, name) in enumerate(zip(series, names, strict=True), start=1):
            folders = one.folder.relative_to(source).parts
            unique = name if taken[name] == 1 else f"{name}_{index}"
            cases.append(Case(unique, (one.scan,), folders[0] if folders else unique))
        kept, refused = one_of_each_name(cases)
        note = (
            "Patients are those that the headers name; where a header names none, the first folder that holds the scan."
        )
        notes = (note, *passed_over(without_image, source, "DICOM without an image"))
        return Source(
            reader=self.name,
            modality="unknown",
            channels=(),
            classes={},
            cases=kept,
            refused=refused,
            notes=notes + passed_over(others, source, "no DICOM"),
        )


def _by_name(path: Path) -> bool:
    return path.name.lower().endswith((".dcm", ".dicom", ".ima"))


def _name(series: Series, source: Path) -> str:
    """The folder's path; with the series' number where the folder holds several."""
    folders = "_".join(series.folder.relative_to(source).parts) or source.resolve().name
    return folders if series.alone else f"{folders}_series{series.number}"


PLUGIN = Dicom
