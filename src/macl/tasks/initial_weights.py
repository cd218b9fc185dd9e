"""The weights that training with labels starts from: none, a run's, or a file's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from macl.data.resolved_split import ResolvedSplit, find_test_people
from macl.models.conversion.foreign import read_foreign
from macl.records.runs import WEIGHTS, read_record, read_weights
from macl.records.training_range import TrainingRange
from macl.tasks.run_settings import NETWORK_SETTINGS, describe_network
from macl.utils import checkpoint
from macl.utils.errors import MaclError, listed
from macl.utils.files import sha256
from macl.utils.progress import warn

SCRATCH = "scratch"


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a segmenter starts from.

    Attributes:
        name: in messages and records; "scratch", or the path with a checksum.
        tensors: under the network's names; empty from scratch.
        network: the `NETWORK_SETTINGS`, as far as the source gives them; empty from scratch.
        patients: whose scans the weights were trained on.
        classes: that its head tells apart; empty where it has none, or they are unknown.
        trained_on: the range of those scans, if it is known.
    """

    name: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    patients: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    trained_on: TrainingRange | None = None

    @property
    def trained_with(self) -> str:
        """The network, in words; empty if it is unknown."""
        return describe_network(self.network) if "backbone" in self.network else ""


def read_init(init: str, decoder_blocks: int) -> InitialWeights:
    """Read the weights that `init` names: "scratch", a training run, or a weights file.

    Args:
        init: as the user gave it.
        decoder_blocks: trained decoder blocks in an authors' file, which does not say.

    Raises:
        MaclError: they do not exist, cannot be read, are not finite, or are of an unfinished run.
    """
    if init == SCRATCH:
        return InitialWeights(SCRATCH)
    path = Path(init)
    if not path.exists():
        raise MaclError(
            f"--init {init} does not exist: name a training run, a weights file, or {SCRATCH!r}."
        )
    if path.is_dir():
        earlier = read_record(path)
        if not earlier.finished:
            raise MaclError(f"The run in {init} is not finished: finish it with --resume first.")
        file, patients, trained_on = path / WEIGHTS, earlier.seen_patients, earlier.trained_on
        source = read_weights(path, earlier)
    else:
        file, patients, trained_on = path, (), None
        is_ours = path.suffix == ".safetensors"
        source = checkpoint.read(path) if is_ours else read_foreign(path, decoder_blocks)
        checkpoint.require_finite(path, source.tensors)
        warn(
            f"{init} does not say whose scans it was trained on; it is assumed that no test people "
            "are among them."
        )
    about = {"dims": 2, **source.about}
    network = {name: about[name] for name in NETWORK_SETTINGS if name in about}
    name = f"{init} ({sha256(file)[:12]})"
    classes = tuple(source.about.get("classes") or ())
    return InitialWeights(name, source.tensors, network, patients, classes, trained_on)


def require_apart(
    init: str, patients: Iterable[str], resolved: ResolvedSplit, allow_overlap: bool
) -> None:
    """MaclError if test people are among the patients whose scans `init` was trained on."""
    leaked = find_test_people(patients, resolved)
    if leaked and not allow_overlap:
        raise MaclError(
            f"{len(leaked)} test people ({listed(leaked)}) were in the training data of {init}: "
            "pre-train with the same --split, or add --allow-overlap (recorded) if these are other "
            "people of the same names."
        )
