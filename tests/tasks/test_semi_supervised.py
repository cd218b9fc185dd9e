"""Self-training: what the teacher is, what it teaches, and what counts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from macl.config.recipes import resolve
from macl.config.settings import SelftrainSettings
from macl.data.batch import Batch
from macl.data.rng import SampleRng
from macl.engine.optimisation import MovingAverage
from macl.losses import soft_dice
from macl.models import unet
from macl.tasks.segmentation import build_segmenter
from macl.tasks.semi_supervised import (
    UNSURE,
    MeanTeacherTask,
    NoisyStudentTask,
    ProportionWatch,
    SelfTrainingTask,
)
from macl.utils.errors import MaclError

CLASSES = ("background", "ring", "disc")
STILL = {"spatial": {"mirror": 0.0, "deform": 0.0}}
PATCHES = {2: (32, 32), 3: (16, 16, 16)}


def task(
    dims: int = 2,
    *,
    kind: type[SelfTrainingTask] = MeanTeacherTask,
    follows_fast: bool = True,
    **changes: Any,
) -> SelfTrainingTask:
    torch.manual_seed(0)
    values = {"backbone_settings": {"width": 4}, "augmentation": STILL, "dims": dims}
    training = {"batch_size": 2, "size": PATCHES[dims]}
    settings = SelftrainSettings.model_validate(values | {"training": training} | changes)
    segmenter = build_segmenter(settings, unet.PLUGIN, 1, len(CLASSES))
    made = kind(segmenter, settings, (), CLASSES, follows_fast=follows_fast)
    made.train()
    return made


def batch(dims: int = 2, step: int = 0, progress: float = 1.0) -> Batch:
    """Two labelled patches, then two without a label."""
    patch = PATCHES[dims]
    axes = [torch.arange(side) - side / 2 for side in patch]
    distance = torch.stack([a.square() for a in torch.meshgrid(*axes, indexing="ij")]).sum(0).sqrt()
    label = (distance < 6).long() + (distance < 3).long()
    noise = torch.randn(4, 1, *patch, generator=torch.Generator().manual_seed(step))
    labels = torch.stack([label, label, torch.zeros_like(label), torch.zeros_like(label)])
    return Batch(
        label[None, None] + 0.3 * noise,
        torch.ones(4, 3),
        SampleRng(0, step, torch.arange(4)),
        labels,
        torch.tensor([True, True, False, False]),
        progress=progress,
    )


def train(made: SelfTrainingTask, steps: int) -> None:
    parameters = [each for each in made.parameters() if each.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.05)
    for step in range(steps):
        made.step(batch(step=step)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("follows_fast", [True, False])
def test_the_teacher_is_the_moving_average_of_the_segmenter(follows_fast: bool) -> None:
    """Of its weights and running statistics; the reference adds up every step by itself."""
    made = task(follows_fast=follows_fast, teacher_decay=0.7)
    names = [
        name for name, value in made.segmenter.state_dict().items() if value.is_floating_point()
    ]
    seen: list[dict[str, Tensor]] = []
    move = made._move_teacher

    def note_and_move(step: Any) -> None:
        seen.append({name: made.segmenter.state_dict()[name].clone() for name in names})
        move(step)

    made._move_teacher = note_and_move  # pyright: ignore[reportAttributeAccessIssue]
    train(made, 12)
    expected = {name: seen[0][name].double() for name in names}
    for step, student in enumerate(seen):
        decay = min(0.7, (1 + step) / (10 + step)) if follows_fast else 0.7
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * student[name].double()
    for name in names:
        found = made.teacher.state_dict()[name].double()
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)
    moved = [name for name in names if not torch.equal(seen[0][name], seen[-1][name])]
    assert any("running_mean" in name for name in moved)
    assert any("weight" in name for name in moved)


def test_the_teacher_follows_as_an_average_of_weights_does() -> None:
    made = task(teacher_decay=0.9)
    average = MovingAverage(made.segmenter, 0.9)
    move = made._move_teacher

    def both(step: Any) -> None:
        average.update(int(step))
        move(step)

    made._move_teacher = both  # pyright: ignore[reportAttributeAccessIssue]
    train(made, 5)
    for name, tensor in average.average.items():
        torch.testing.assert_close(made.teacher.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_no_gradient_reaches_the_teacher(dims: int) -> None:
    made = task(dims, confidence=0.0)
    output = made.step(batch(dims))
    output.loss.backward()
    assert output.logged["loss_unlabelled"] > 0
    assert all(each.grad is None and not each.requires_grad for each in made.teacher.parameters())
    assert all(each.grad is not None for each in made.segmenter.parameters())
    assert not any(module.training for module in made.teacher.modules())
    assert made.segmenter.training


def test_the_labels_of_unlabelled_patches_are_not_looked_at() -> None:
    first = batch()
    assert first.labels is not None
    other = replace(first, labels=torch.cat((first.labels[:2], torch.ones_like(first.labels[2:]))))
    losses = [task().step(each).loss for each in (first, other)]
    assert torch.equal(*losses)


def test_unsure_voxels_do_not_count() -> None:
    """No fresh teacher is this sure, so the loss is that of the labelled patches alone."""
    unsure = task(confidence=0.999999, loss="cross_entropy").step(batch())
    assert unsure.logged["loss_unlabelled"] == 0
    assert [float(unsure.logged[f"confident_{k}"]) for k in range(3)] == [0, 0, 0]
    torch.testing.assert_close(unsure.loss.detach(), unsure.logged["loss_cross_entropy"])
    sure = task(confidence=0.0).step(batch())
    shares = [float(sure.logged[f"confident_{k}"]) for k in range(3)]
    assert set(shares) <= {0.0, 1.0}, "a class that is not predicted has no share"
    assert 1.0 in shares


def test_the_limit_follows_the_confidence_of_each_class() -> None:
    """Background at 0.96 and a structure at 0.72: three quarters as sure, a limit of 0.675."""
    confidence = torch.full((1, 4, 8), 0.96)
    labels = torch.zeros(1, 4, 8, dtype=torch.long)
    labels[:, 2:], confidence[:, 2] = 1, 0.80
    confidence[:, 3] = 0.64
    made = task(confidence=0.9, adapt_confidence=True)
    taught = made.teach(batch())._replace(labels=labels, confidence=confidence)
    counted = made._counted(taught, 0)
    torch.testing.assert_close(made.confidences, torch.tensor([0.96, 0.72, 0.0]))
    assert counted[0].all(dim=1).tolist() == [True, True, True, False]
    fixed = task(confidence=0.9)._counted(taught, 0)
    assert fixed[0].all(dim=1).tolist() == [True, True, False, False]
    outside = taught._replace(confidence=torch.zeros_like(confidence))
    assert not task(confidence=0.0, adapt_confidence=True)._counted(outside, 0).any()


def test_the_limit_of_a_class_that_is_first_seen_late_is_that_of_its_own_confidence() -> None:
    made = task(confidence=0.9, adapt_confidence=True)
    labels = torch.zeros(1, 4, 8, dtype=torch.long)
    confidence = torch.full((1, 4, 8), 0.96)
    taught = made.teach(batch())._replace(labels=labels, confidence=confidence)
    for step in range(100):
        made._counted(taught, step)
    labels, confidence = labels.clone(), confidence.clone()
    labels[:, 3], confidence[:, 3] = 1, 0.64
    confidence[:, 3, :4] = 0.4
    counted = made._counted(taught._replace(labels=labels, confidence=confidence), 100)
    torch.testing.assert_close(made.confidences, torch.tensor([0.96, 0.52, 0.0]))
    assert counted[0, 3].tolist() == [False] * 4 + [True] * 4


def test_boxes_mix_image_label_and_confidence_alike() -> None:
    """Each patch of one value shows that of the next in a box, and so do its labels."""
    made = task(cutmix=1.0)
    own = batch()
    values = torch.arange(4.0)
    constant = own.images * 0 + values.reshape(-1, 1, 1, 1)
    taught = made.teach(own)._replace(
        images=constant, labels=constant[:, 0].long(), confidence=constant[:, 0] / 8
    )
    mixed = made._mixed(own, taught)
    for number in range(4):
        assert set(mixed.labels[number].unique().tolist()) == {number, (number + 1) % 4}
    assert torch.equal(mixed.images[:, 0].long(), mixed.labels)
    assert torch.equal(mixed.confidence, mixed.labels / 8)
    assert torch.equal(task(cutmix=0.0)._mixed(own, taught).labels, taught.labels)


def test_a_fixed_teacher_labels_through_the_batch() -> None:
    made = task(kind=NoisyStudentTask, cutmix=0.0, confidence=0.0)
    own = batch()
    assert own.labels is not None
    pseudo = own.labels.clone()
    pseudo[2:] = 2
    pseudo[2:, :16] = UNSURE
    taught = made.teach(replace(own, labels=pseudo).rows(slice(2, None)))
    counted = made._counted(taught, 0)
    assert not counted[:, :16].any()
    assert counted[:, 16:].all()
    assert (taught.labels[:, 16:] == 2).all()


def test_soft_dice_over_some_voxels_is_that_of_these_alone() -> None:
    logits = torch.randn(2, 3, 8, 8)
    labels = torch.randint(0, 3, (2, 8, 8))
    counted = torch.zeros(2, 8, 8, dtype=torch.bool)
    counted[:, 2:6] = True
    expected = soft_dice(logits[:, :, 2:6], labels[:, 2:6])
    torch.testing.assert_close(soft_dice(logits, labels, counted), expected)


@pytest.mark.parametrize(
    ("progress", "weight"),
    [(0.0, 0.5 * math.exp(-5)), (0.2, 0.5 * math.exp(-1.25)), (0.4, 0.5), (1.0, 0.5)],
)
def test_the_unlabelled_weight_rises(progress: float, weight: float) -> None:
    made = task(unlabelled_weight=0.5, ramp=0.4)
    logged = made.step(batch(progress=progress)).logged
    assert float(logged["unlabelled_weight"]) == pytest.approx(weight)


def test_every_logged_value_is_described() -> None:
    made = task()
    logged = made.step(batch()).logged
    assert set(logged) == set(made.quantities)
    assert made.quantities["confident_2"].label == "Confident, disc"


def test_proportions_are_of_the_teacher_over_those_of_the_labels() -> None:
    class SeesRings(SelfTrainingTask):
        def labels_at(self, grid: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
            return torch.ones(2, 32, 32, dtype=torch.long), torch.ones(2, 32, 32)

    made = task(kind=SeesRings)
    own = batch()
    assert own.labels is not None
    logged = made.step(own).logged
    share = float((own.labels[:2] == 1).float().mean())
    assert float(logged["proportion_1"]) == pytest.approx(1 / share, rel=1e-5)
    assert float(logged["proportion_2"]) == 0


def test_a_perfect_teacher_has_the_proportions_of_the_labels_in_turned_views() -> None:
    """Whose corners lie outside the scan, where labels are background."""
    turned = {"mirror": 0.0, "deform": 1.0, "rotation_degrees": 30.0, "elastic_alpha": (0.0, 0.0)}
    made = task(augmentation={"spatial": turned}, cutmix=0.0, foreground_share=0.0)
    own = batch()
    assert own.labels is not None
    own = replace(own, labels=own.labels[[0, 1, 0, 1]])

    def perfect(images: Tensor) -> Tensor:
        truth = own.labels[2:] if own.labels is not None else None
        assert truth is not None
        return 50.0 * torch.nn.functional.one_hot(truth, len(CLASSES)).movedim(-1, 1).float()

    made.teacher.forward = perfect  # pyright: ignore[reportAttributeAccessIssue]
    logged = [made.step(replace(own, rng=SampleRng(0, 0, torch.arange(4)))).logged]
    for step in range(1, 60):
        logged.append(made.step(replace(own, rng=SampleRng(0, step, torch.arange(4)))).logged)
    assert float(logged[-1]["proportion_1"]) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ((0.90, 0.06, 0.04), ""),
        ((0.90, 0.10, 0.001), "disc vanishes"),
        ((0.999, 0.0006, 0.0004), "too little of it is foreground"),
        ((0.30, 0.40, 0.30), "too much of it is foreground"),
    ],
)
def test_collapse_is_warned_of_once(
    teacher: tuple[float, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = task(ramp=0.3)
    made.label_shares = torch.tensor([0.90, 0.06, 0.04])
    made.teacher_shares = torch.tensor(teacher)
    watch = ProportionWatch(made, steps=100)
    watch(29, {})
    assert capsys.readouterr().err == "", "the unlabelled weight still rises"
    for step in (30, 60):
        watch(step, {})
    warned = capsys.readouterr().err
    assert warned.count(said) == 1 if said else not warned


def test_one_moving_average_is_enough() -> None:
    with pytest.raises(MaclError, match=r"leave training\.ema_decay out and set teacher_decay"):
        resolve(SelftrainSettings, {}, ["training.ema_decay=0.9"])
