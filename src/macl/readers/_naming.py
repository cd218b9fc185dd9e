"""How people name folders and files of scans: what tells labels, people, visits and modalities."""

from __future__ import annotations

import re

_SPLIT = r"(tr|ts|va|te|val|train|training|test|testing|valid|validation)"
SPLIT_FOLDER = re.compile(_SPLIT, re.IGNORECASE)
IMAGE_FOLDER = re.compile(rf"(?:images?|imgs?|scans?)[ _-]?{_SPLIT}?", re.IGNORECASE)
LABEL_FOLDER = re.compile(
    r"(?:labels?|masks?|segs?|segmentations?|gts?|ground[ _-]?truths?|annotations?)"
    rf"[ _-]?{_SPLIT}?",
    re.IGNORECASE,
)
IMAGE_NAME = re.compile(r"(.*?)(?:^|[._-])(?:image|img|orig)", re.IGNORECASE)
LABEL_NAME = re.compile(
    r"(.*?)(?:^|[._-])(?:gt|segs?|segmentation|labels?|masks?|ground[_-]?truth)", re.IGNORECASE
)

_LABEL_WORDS = {
    "annotation", "annotations", "anno", "aseg", "contour", "contours", "dseg", "groundtruth", "gt",
    "gts", "label", "labels", "lbl", "lbls", "mask", "masks", "msk", "roi", "rois", "seg", "segm",
    "segmentation", "segmentations", "segs", "truth",
}  # fmt: skip
_IMAGE_WORDS = {
    "ct", "data", "image", "images", "img", "imgs", "input", "mr", "mri", "orig", "original", "raw",
    "scan", "scans", "vol", "volume", "volumes",
}  # fmt: skip
"""Words, anywhere in a name, by which people tell masks from scans."""

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_A-Za-z]+")

_PLACE = (
    r"(?:sites?|cent(?:er|re)s?|hosp(?:itals?)?|clinics?|institut(?:e|ion)s?|scanners?|vendors?|"
    r"cohorts?|groups?|folds?|batch(?:es)?|domains?|data ?sets?|(?:un)?labell?ed)"
    r"(?:[ _-]?(?:\d+|[a-z]|[ _-]\w+))?"
)
_DIAGNOSIS = (
    r"(?:benign|malignant|normal|abnormal|healthy|diseased?|positive|negative|controls?|patients|"
    r"cases|(?:no[ _-]?)?tumou?rs?|cancer|lesions?|covid(?:[ _-]?19)?|pneumonia)"
)
_OCCASION = (
    r"(?:(?:visit|session|ses|time[ _-]?point|tp|day|week|month|year|phase|follow[ _-]?up|fu)"
    r"[ _-]?\d*|base[ _-]?line|(?:pre|post)(?:[ _-]?(?:op|treatment|contrast))?|"
    r"(?:19|20)\d\d)"
)
_MODALITY = (
    r"(?:t[12](?:[ _-]?w|[ _-]?c|[ _-]?ce|[ _-]?gd|[ _-]?star|[ _-]?flair)?|pdw?|flair|dwi|adc|dti|"
    r"swi|bold|f?mri|mra?|cine|lge|ct|cta|cbct|pet|us|ultrasound|x[ _-]?rays?|"
    r"axial|coronal|sagittal)"
)
_GROUP_FOLDER = re.compile(rf"{_PLACE}|{_DIAGNOSIS}|{_OCCASION}|{_MODALITY}", re.IGNORECASE)
_REMARK = re.compile(
    rf"(?P<scan>.+?)[ ._-]+(?:{'|'.join(sorted(_LABEL_WORDS))})\d*"
    rf"(?:[ ._-]+(?!{_OCCASION}(?:[ ._-]|$))[a-z]+)*",
    re.IGNORECASE,
)
_SCAN_OF_A_PERSON = re.compile(rf"(.+?)[ ._-](?:{_OCCASION}|{_MODALITY})", re.IGNORECASE)
_PERSON = re.compile(
    r"(?:[sp][ _-]?\d|(?:sub|subj|subject|pt|pat|patient|person|participant|proband|volunteer|case)"
    r"(?:[ _-]|(?=\d))\w*\d)\w*",
    re.IGNORECASE,
)


def tells_labels(name: str) -> bool:
    """Whether a name consists of words that tell labels: `Expert Segmentations` does not."""
    words = {*_words(name)}
    return bool(words) and words <= _LABEL_WORDS


def holds_label_word(name: str) -> bool:
    """Whether a word of a name is one of those that tell labels."""
    return not _LABEL_WORDS.isdisjoint(_words(name))


def plain_words(name: str) -> tuple[str, ...]:
    """The words of a name without those that tell images from labels."""
    return tuple(word for word in _words(name) if word not in _LABEL_WORDS | _IMAGE_WORDS)


def without_remarks(name: str) -> str | None:
    """A label's name up to the word that tells labels: `c0` of `c0_mask_final`; None: it has none.

    A number in the rest tells labels apart (`c0_mask_2`), unless it is the word's own (`c0_mask2`),
    and so does a visit (`c0_mask_followup`): such names are not shortened.
    """
    match = _REMARK.fullmatch(name)
    return match["scan"] if match else None


def without_occasion(name: str) -> str:
    """A scan's name without the visit or modality that it ends in: `sub1` of `sub1_T2`."""
    match = _SCAN_OF_A_PERSON.fullmatch(name)
    return match[1] if match else name


def names_a_person(name: str) -> bool:
    """Whether a name is one as people have them in data sets: `sub-01`, `patient003`, `p1`."""
    return _PERSON.fullmatch(name) is not None


def gathers_people(folder: str) -> bool:
    """Whether a folder's name is that of a group: `Batch 2`, `benign`, `follow-up`, `2019`."""
    return _GROUP_FOLDER.fullmatch(folder) is not None


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]
