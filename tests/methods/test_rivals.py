"""What is particular to single methods: who learns from what, what stands still, what is
remembered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fakes.batches import batch
from fakes.networks import method
from macl.losses import sinkhorn


def build(name: str, **settings):
    torch.manual_seed(0)
    return method(name, settings, width=2).train()


def has_gradient(module: torch.nn.Module) -> bool:
    return any(
        parameter.grad is not None and parameter.grad.any() for parameter in module.parameters()
    )


# ---------------------------------------------------------------- momentum


@pytest.mark.parametrize("method", ["moco", "byol", "desd", "dira"])
def test_twins_never_learn_by_gradient(method):
    small = {"queue": 8} if method in ("moco", "dira") else {"hidden": 16, "projection": 8}
    task = build(method, **small, **({"prototypes": 16} if method == "desd" else {}))
    task.step(batch(progress=0.9)).loss.backward()
    twins = [
        module
        for name, module in task.named_children()
        if name.startswith(("key_", "target_", "teacher_"))
    ]
    assert len(twins) == 2
    assert not any(has_gradient(twin) for twin in twins)
    assert has_gradient(task.network.encoder)


def test_moco_queues_its_keys_in_order():
    task = build("moco", queue=6, momentum=1.0)
    keys = []
    compute = task.keys
    task.keys = lambda images: keys.append(compute(images)) or keys[-1]
    task.step(batch())
    task.step(batch())
    torch.testing.assert_close(task.queue.keys[:4], torch.cat((keys[1][2:], keys[0][2:4])))
    torch.testing.assert_close(task.queue.keys[4:], keys[1][:2])


def test_the_teachers_centre_follows_its_scores():
    task = build("desd", hidden=16, projection=8, prototypes=16)
    scores = []
    task.teacher_head.register_forward_hook(lambda *args: scores.append(args[2]))
    task.step(batch())
    torch.testing.assert_close(task.centre, 0.1 * torch.cat(scores).mean(0))


def test_desd_teaches_every_depth():
    task = build("desd", hidden=16, projection=8, prototypes=16)
    step = task.step(batch())
    step.loss.backward()
    assert len(task.heads) == 4
    torch.testing.assert_close(
        step.loss.detach(),
        sum(step.logged[f"loss_{name}"] for name in ("deepest", "sub_encoders")) / 4,
    )
    assert all(has_gradient(head) for head in task.heads)


# ---------------------------------------------------------------- stop-gradient, neighbours, codes


def test_simsiam_loss_is_the_mean_of_both_directions():
    task = build("simsiam", hidden=8, projection=8)
    z1, z2 = torch.randn(6, 8), torch.randn(6, 8)
    p1, p2 = task.predictor(z1), task.predictor(z2)
    slow = -0.5 * (F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean())
    torch.testing.assert_close(task.losses(z1, z2).loss, slow)


def test_simtriplet_is_simsiam_twice_where_the_neighbour_is_the_view():
    triplet, pair = (build(name, hidden=8, projection=8) for name in ("simtriplet", "simsiam"))
    pair.load_state_dict(triplet.state_dict())
    z1, z2 = torch.randn(6, 8), torch.randn(6, 8)
    torch.testing.assert_close(triplet.losses(z1, z2, z2).loss, 2 * pair.losses(z1, z2).loss)
    given = batch()
    assert triplet.step(given).loss != triplet.step(replace(given, neighbours=given.images)).loss


def test_swav_codes_with_a_queue_are_those_of_the_whole():
    task = build("swav", hidden=16, projection=8, prototypes=4, queue=8)
    queued, new = F.normalize(torch.randn(8, 8), dim=1), torch.randn(4, 8)
    task.queues[0].push(queued)
    with torch.no_grad():
        whole = sinkhorn(task.prototypes(torch.cat((queued, new))), 0.05, 3)
    torch.testing.assert_close(task.codes(0, new, with_queue=True), whole[-4:])
    torch.testing.assert_close(task.queues[0].keys[:4], F.normalize(new, dim=1))


def test_swav_makes_codes_without_its_queue_until_that_is_full():
    task = build("swav", hidden=16, projection=8, prototypes=4, queue=8)
    task.queues[0].push(F.normalize(torch.randn(7, 8), dim=1))
    new = torch.randn(4, 8)
    with torch.no_grad():
        alone = sinkhorn(task.prototypes(new), 0.05, 3)
    torch.testing.assert_close(task.codes(0, new, with_queue=True), alone)
    assert task.queues[0].is_full


def test_swav_predicts_each_code_from_all_other_views():
    task = build("swav", hidden=16, projection=8, prototypes=4, queue=0)
    scores, codes = (
        [torch.randn(3, 4) for _ in range(3)],
        [torch.randn(3, 4).softmax(1) for _ in range(2)],
    )
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    slow = [-(codes[c] * (scores[s] / 0.1).log_softmax(1)).sum(1).mean() for c, s in pairs]
    torch.testing.assert_close(task.swapped(scores, codes), torch.stack(slow).mean())


def test_swav_prototypes_stand_still_at_first():
    task = build("swav", hidden=16, projection=8, prototypes=4, queue=0, small_crops=0)
    task.step(batch(progress=0.0)).loss.backward()
    assert task.prototypes.weight.grad is None
    task.step(batch(progress=0.5)).loss.backward()
    assert has_gradient(task.prototypes)


# ---------------------------------------------------------------- stages


def test_gcl_trains_the_encoder_then_the_decoder_on_it():
    task = build("gcl")
    first = task.step(batch(progress=0.0))
    first.loss.backward()
    assert has_gradient(task.network.encoder)
    assert not has_gradient(task.network.decoder)
    task.zero_grad(set_to_none=True)
    before = {name: tensor.clone() for name, tensor in task.network.encoder.state_dict().items()}
    second = task.step(batch(progress=0.5))
    second.loss.backward()
    assert not has_gradient(task.network.encoder)
    assert has_gradient(task.network.decoder)
    assert has_gradient(task.local_projector)
    assert all(
        torch.equal(before[name], tensor)
        for name, tensor in task.network.encoder.state_dict().items()
    )
    assert (first.logged["loss_local"], second.logged["loss_global"]) == (0, 0)


def test_gcl_regions_lie_at_the_same_places_in_both_renderings():
    task = build("gcl", regions=4, region_side=2)
    maps = torch.randn(3, 5, 8, 8)
    first, second = (task._regions(maps, batch(3).rng) for _ in range(2))
    assert first.shape == (3, 4, 20)
    assert torch.equal(first, second)
    everywhere = F.unfold(maps, 2, stride=2).mT
    assert all((everywhere[b] == first[b, r]).all(1).any() for b in range(3) for r in range(4))


def test_gcl_original_form_leaves_the_same_part_out():
    task = build("gcl", original_form=True)
    z1, z2, positions = torch.randn(3, 8), torch.randn(3, 8), torch.tensor([[0.1], [0.2], [0.9]])
    unit = F.normalize(torch.cat((z1, z2)), dim=1)
    scores = (unit @ unit.T / 0.1).exp()
    part = torch.tensor([0, 0, 1, 0, 0, 1])
    losses = [
        -torch.log(scores[i, j] / (scores[i, j] + scores[i][part != part[i]].sum()))
        for i in range(6)
        for j in range(6)
        if i != j and part[i] == part[j]
    ]
    torch.testing.assert_close(task.global_loss(z1, z2, positions), torch.stack(losses).mean())


def test_dira_each_side_moves_itself_alone():
    task = build("dira", queue=8, discriminator_width=2)
    restored, true = torch.randn(2, 1, 32, 32, requires_grad=True), torch.randn(2, 1, 32, 32)
    deceiving, discriminator = task.adversarial(restored, true)
    deceiving.backward(retain_graph=True)
    assert restored.grad is not None
    assert restored.grad.any()
    assert not has_gradient(task.discriminator)
    restored.grad = None
    discriminator.backward()
    assert restored.grad is None
    assert has_gradient(task.discriminator)


def test_dira_adversary_is_of_least_squares():
    """Towards 1 on true views and 0 on restored ones; the network wants 1 on restored ones."""
    task = build("dira", queue=8, discriminator_width=2)
    restored, true = torch.randn(2, 1, 32, 32), torch.randn(2, 1, 32, 32)
    on_restored, on_true = task.discriminator(restored), task.discriminator(true)
    deceiving, discriminator = task.adversarial(restored, true)
    torch.testing.assert_close(deceiving, F.mse_loss(on_restored, torch.ones_like(on_restored)))
    halves = F.mse_loss(on_true, torch.ones_like(on_true)) + F.mse_loss(
        on_restored, torch.zeros_like(on_restored)
    )
    torch.testing.assert_close(discriminator, halves / 2)


def test_dira_joins_its_parts_one_after_another():
    task = build("dira", queue=8, discriminator_width=2, restoration_from=0.2)
    names = ("loss_discriminative", "loss_restorative", "loss_discriminator")
    taking_part = [
        [bool(task.step(batch(progress=done)).logged[name]) for name in names]
        for done in (0.0, 0.3, 0.5)
    ]
    assert taking_part == [[True, False, False], [True, True, False], [True, True, True]]


def test_masked_counts_covered_pixels_alone():
    task = build("masked").eval()
    images, covered = torch.randn(2, 1, 32, 32), torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    covered[:, :, :16] = True
    features = task.network.encode(images.masked_fill(covered, 0.0))
    changed = images.clone()
    changed[:, :, 16:] += 5.0
    ours = task.losses(features, images, covered).loss
    assert ours == task.losses(features, changed, covered).loss
    restored = task.to_pixels(task.network.decode(features)[-1])
    torch.testing.assert_close(ours, F.mse_loss(restored[:, :, :16], images[:, :, :16]))
