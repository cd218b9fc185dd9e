from __future__ import annotations

import pytest

from fakes.finished_runs import described
from macl import plugins
from macl.pages.log_columns import log_columns
from macl.plugins import find
from macl.records.runs import LoggedQuantity
from macl.tasks.segmentation import SegmentationTask


def test_a_task_s_values_are_called_what_the_task_calls_them() -> None:
    quantities = {
        "loss_dense": LoggedQuantity(label="Dense loss", description="Per position.", unit="nats"),
        "feature_spread": LoggedQuantity(label="Feature spread"),
    }
    names = ["feature_spread", "loss_dense", "epoch", "learning_rate", "loss", "patches_per_second"]
    columns = log_columns(names, quantities)
    assert [(column.title, column.group) for column in columns] == [
        ("Loss", "loss"),
        ("Learning rate", "loop"),
        ("Throughput, patches/s", "loop"),
        ("Dense loss, nats", "loss"),
        ("Feature spread", "diagnostic"),
    ]


def test_a_value_that_nobody_describes_goes_by_its_own_name() -> None:
    columns = log_columns(["loss_new_part", "slices_per_second", "a_new_value"], {})
    assert [(column.title, column.group) for column in columns] == [
        ("A new value", "diagnostic"),
        ("Loss new part", "loss"),
        ("Slices per second", "loop"),
    ]


@pytest.mark.parametrize("name", [*plugins.names("methods"), "fine-tuning"])
def test_every_task_has_labels_and_sentences_for_its_values(name: str) -> None:
    task = SegmentationTask if name == "fine-tuning" else find("methods", name)
    columns = log_columns(task.quantities, described(task))
    assert columns
    labels = [column.quantity.label for column in columns]
    assert len(set(labels)) == len(labels)
    for column in columns:
        assert column.quantity.description.endswith("."), column.name
