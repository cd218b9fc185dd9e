"""How much of the minutes each step of a run takes, and how many steps of training they buy."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from macl.inference.sliding_window import window_starts
from macl.stages.selftrain import MOST_LABELLED
from macl.workflows.run.choices import SplitChoice
from macl.workflows.run.facts import SourceFacts
from macl.workflows.run.plan import ExpectedSeconds
from macl.workflows.run.speed import DesignSpeed, NetworkDesign

FEWEST_STEPS = 20
MOST_STEPS = 6000
"""Of fine-tuning and of self-training; the most is the length of their recipes."""

LEAST_FINETUNING, LEAST_SELFTRAINING = 700, 350
"""Steps of fine-tuning, and of self-training after it, with which self-training was seen to pay; a
teacher that has learnt too little does harm."""

FEWEST_EPOCH_STEPS, MOST_EPOCH_STEPS, MOST_EPOCHS = 1000, 20_000, 100
"""Pre-training lasts this many epochs at most, which are at least and at most so many steps."""

CASE_SECONDS = 0.02
RUN_SECONDS = 2.0
PAGE_SECONDS = 6.0
MASK_SECONDS_PER_VOXEL = 2.5e-8
SCORE_SECONDS_PER_VOXEL = 6e-8
"""Of reading and writing a case, opening a run, the page, a mask on its own grid, its scores; the
last two for every class."""


@dataclass(frozen=True)
class TrainingSteps:
    """How long each training is."""

    pretrain: int
    finetune: int = 0
    selftrain: int = 0

    @property
    def deciding(self) -> int:
        """Those that decide how well the network is trained."""
        return self.finetune or self.pretrain


@dataclass(frozen=True)
class Workload:
    """What is to be trained.

    Attributes:
        models: segmenters; 0: there are no labels.
        training_people: with labels, for every model.
        may_selftrain: whether these are few, and others have no labels.
        epoch_steps: steps of an epoch of pre-training.
    """

    models: int
    training_people: int
    may_selftrain: bool
    epoch_steps: int


@dataclass(frozen=True)
class Budget:
    """The time that a run may take.

    Attributes:
        facts: about the scans.
        minutes: for everything.
        started: `time.perf_counter()` when they began.
        prepare_seconds: expected of `prepare`.
    """

    facts: SourceFacts
    minutes: float
    started: float
    prepare_seconds: float

    def models(self, split: SplitChoice) -> int:
        """How many segmenters are trained."""
        return max(1, split.folds) if self.facts.labelled else 0

    def workload(self, design: NetworkDesign, split: SplitChoice) -> Workload:
        """What is to be trained with a design."""
        depth = 1 if design.dims == 2 else design.pretrain_size[0]
        patches = sum(
            math.ceil(size[0] / depth) for size in self.facts.prepared_sizes(design.spacing_mm)
        )
        labelled = len(self.facts.labelled_people)
        training = labelled - split.testing(labelled) if labelled else 0
        few = training <= MOST_LABELLED
        return Workload(
            self.models(split),
            training,
            may_selftrain=few and bool(self.facts.unlabelled_people),
            epoch_steps=patches // design.pretrain_batch,
        )

    def steps(self, design: NetworkDesign, speed: DesignSpeed, split: SplitChoice) -> TrainingSteps:
        """What the budget leaves for training."""
        expected = self.expected(design, speed, split)
        other = expected.prepare + expected.predict + expected.report
        spent = time.perf_counter() - self.started
        left = 60 * self.minutes - spent - other
        return allot(left, speed, self.workload(design, split))

    def expected(
        self, design: NetworkDesign, speed: DesignSpeed, split: SplitChoice
    ) -> ExpectedSeconds:
        """How long everything but training takes."""
        facts, models = self.facts, self.models(split)
        if not models:
            return ExpectedSeconds(prepare=self.prepare_seconds, report=PAGE_SECONDS)
        window = (1,) * (3 - design.dims) + speed.finetune_size
        windows = sum(
            math.prod(len(window_starts(*sides)) for sides in zip(size, window, strict=True))
            for size in facts.prepared_sizes(design.spacing_mm)
        )
        # Every scan by all models, and the tested ones once more, by the model that tests them.
        cases = len(facts.fingerprint.cases)
        tested = split.tested_share(len(facts.labelled_people))
        again = tested * facts.labelled / cases
        masks = MASK_SECONDS_PER_VOXEL * facts.voxels * facts.classes + CASE_SECONDS * cases
        predict = windows * speed.window * (models + again) + masks * (1 + again)
        scores = SCORE_SECONDS_PER_VOXEL * tested * facts.labelled_voxels * facts.classes
        return ExpectedSeconds(
            prepare=self.prepare_seconds,
            predict=round(predict + RUN_SECONDS * models, 1),
            report=round(PAGE_SECONDS + RUN_SECONDS * models + scores, 1),
        )


def allot(seconds: float, speed: DesignSpeed, work: Workload) -> TrainingSteps:
    """Share the time for training out.

    Args:
        seconds: for all training.
        speed: of a step of each kind.
        work: what is to be trained.

    Returns:
        Steps of pre-training, and of fine-tuning and self-training of every model. Self-training
        gets none where it would be too short to help.
    """
    epochs = MOST_EPOCHS * work.epoch_steps
    most = min(MOST_EPOCH_STEPS, max(FEWEST_EPOCH_STEPS, epochs))

    def pretraining(left: float) -> int:
        return _whole(left / speed.pretrain, most)

    def segmenters(share: float, finetuning: float) -> TrainingSteps:
        """With this share for pre-training at most, and this share of the rest for fine-tuning."""
        for_one = (seconds - pretraining(share * seconds) * speed.pretrain) / work.models
        finetune = _whole(finetuning * for_one / speed.finetune, MOST_STEPS)
        selftrain, used = 0, finetune * speed.finetune
        if finetuning < 1:
            selftrain = _whole((for_one - used) / speed.selftrain, MOST_STEPS)
            used += selftrain * speed.selftrain
        return TrainingSteps(pretraining(seconds - work.models * used), finetune, selftrain)

    if not work.models:
        return TrainingSteps(pretraining(seconds))
    if work.may_selftrain:
        steps = segmenters(0.25, finetuning=0.45)
        if steps.finetune >= LEAST_FINETUNING and steps.selftrain >= LEAST_SELFTRAINING:
            return steps
    return segmenters(0.4, finetuning=1.0)


def _whole(steps: float, most: int) -> int:
    """A number of steps within bounds, of which two digits count."""
    bounded = max(FEWEST_STEPS, min(most, steps))
    unit = 10 ** max(0, int(math.log10(bounded)) - 1)
    return int(bounded // unit) * unit
