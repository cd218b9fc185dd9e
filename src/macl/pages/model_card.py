"""The model card of an export: what the weights are, in Markdown, without names of people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from macl.models.transfer import Transfer
from macl.pages.result_table import ResultTable
from macl.records.runs import RunRecord
from macl.tasks.run_settings import describe_network
from macl.utils.text import format_duration, format_size

_KINDS = {
    "pretrain": "Pre-trained weights",
    "finetune": "Segmenter, fine-tuned with labels",
    "selftrain": "Segmenter, trained with labels and on unlabelled scans",
}

_LICENCE = """## Licence
macl is under Apache-2.0. What the weights may be used for depends on the terms of the scans that
they were trained on, which macl does not know. **State the licence here before you pass the file
on.**"""

_USE = """## Intended use
Research on the segmentation of medical scans that are like those of the training. Not a medical
device: not for diagnosis or treatment. On scans of another modality, spacing, scanner or
population, measure before you trust it."""

_CITATION = """## Citation
Zeng et al., Multi-level Asymmetric Contrastive Learning for Volumetric Medical Image Segmentation
Pre-training, IEEE Journal of Biomedical and Health Informatics, 2026,
https://doi.org/10.1109/JBHI.2026.3669549 (arXiv 2309.11876)."""

_NNUNET = """
For nnU-Net: Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical
image segmentation, Nature Methods 18, 203–211, 2021."""


def model_card(
    record: RunRecord, file: str, transfer: Transfer | None, scores: Mapping[str, Any] | None
) -> str:
    """The card of a finished run's export.

    Args:
        record: the run's.
        file: what the exported file is, in words.
        transfer: what of the exported network is trained; None: all of it.
        scores: means of the run's scores, as `macl.records.scores.summarise` returns them; None:
            it was not scored.
    """
    network = describe_network({**record.settings, "backbone_settings": {}})
    citation = _CITATION + (_NNUNET if record.settings["backbone"] == "nnunet" else "")
    parts = (
        f"# {_KINDS[record.kind]}: {network}",
        f"- File: {file}.",
        *_tensors(transfer),
        "",
        *_data(record),
        "",
        *_training(record),
        "",
        *_scores(record, scores),
        "",
        _USE,
        "",
        _LICENCE,
        "",
        citation,
    )
    return "\n".join(parts) + "\n"


def _tensors(transfer: Transfer | None) -> Iterator[str]:
    if transfer is None:
        return
    fresh = len(transfer.tensors) - len(transfer.names)
    yield f"- Tensors: {len(transfer.names)} trained" + (
        f", {fresh} fresh, drawn at random from the run's seed." if fresh else "."
    )


def _data(record: RunRecord) -> Iterator[str]:
    yield "## Data"
    yield f"- Modality: {record.modality}; channels: {', '.join(record.channels)}."
    yield f"- Layout: {record.reader}."
    kind = "with" if record.is_segmenter else "without"
    yield f"- Scans {kind} labels: {len(record.cases)}; patients: {len(record.patients)}."
    if record.unlabelled_cases:
        count, patients = len(record.unlabelled_cases), len(record.unlabelled_patients)
        yield f"- Scans without labels: {count}; patients: {patients}."
    if record.init_patients:
        count = len(record.init_patients)
        yield f"- Patients in the training of the weights that it started from: {count}."
    if record.classes and record.is_segmenter:
        yield f"- Classes: {', '.join(record.classes)}."
    withheld = "overlap allowed" if record.overlap_allowed else "never trained on"
    yield (
        f"- Test scans set aside: {len(record.test_cases)}, {withheld}."
        if record.test_cases
        else "- Test scans set aside: none."
    )
    trained = record.trained_on
    if trained and trained.finest_mm and trained.coarsest_mm:
        finest, coarsest = (
            " × ".join(f"{mm:.3g}" for mm in spacing)
            for spacing in (trained.finest_mm, trained.coarsest_mm)
        )
        spacing = finest if finest == coarsest else f"{finest} to {coarsest}"
        yield f"- Spacing as trained (z, y, x): {spacing} mm."
    prepared = record.prepared.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    if record.prepared.plan:
        prepared["plan"] = record.prepared.plan
    stated = ", ".join(f"{name} {value}" for name, value in prepared.items())
    yield f"- Prepared with: {stated or 'the default settings'}."


def _training(record: RunRecord) -> Iterator[str]:
    settings = record.settings
    training = settings["training"]
    yield "## Training"
    if record.kind == "pretrain":
        yield f"- Method: {settings['method']}{_in_brackets(settings['method_settings'])}."
    else:
        yield f"- Loss: {settings['loss'].replace('_', ' ')}."
    size = format_size(record.patch)
    yield (
        f"- {record.steps} steps of {training['batch_size']} patches of {size} voxels, "
        f"{training['optimiser']}, learning rate {training['learning_rate']:g}, "
        f"seed {record.seed}, in {format_duration(record.seconds)}."
    )
    if record.at_uniform:
        yield "- **The features collapsed**: all patches look alike to this network."
    used = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    yield f"- Versions: {used}."


def _in_brackets(settings: Mapping[str, Any]) -> str:
    plain = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in settings.items()
        if isinstance(value, int | float | str)
    ]
    return f" ({', '.join(plain)})" if plain else ""


def _scores(record: RunRecord, scores: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Scores"
    if scores is None:
        yield "Not scored." if record.is_segmenter else "None: it has no classes yet."
        return
    rows = [(row["class"], *_cells(row)) for row in scores["classes"]]
    rows.append(("mean", *_cells(scores["mean"])))
    heads = ("class", "Dice in %", f"HD95 in {scores['unit']}", f"ASD in {scores['unit']}")
    yield f"Means over {scores['cases']} scans, convention {scores['convention']}."
    yield ""
    yield from ResultTable("Scores", heads, tuple(rows), 1).markdown()


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    for measure, factor in (("dice", 100.0), ("hd95", 1.0), ("asd", 1.0)):
        mean, deviation = row[measure]["mean"], row[measure]["sd"]
        if mean is None:
            yield "–"
        else:
            yield f"{factor * mean:.1f}" + (
                "" if deviation is None else f" ± {factor * deviation:.1f}"
            )
