"""What counts as a label: class numbers in patches, not an image or a smeared mask."""

from __future__ import annotations

import numpy as np
import pytest

from macl.io.source import Source
from macl.preprocessing.findings import CaseFinding, classes_of
from macl.preprocessing.labels import count_values, require_plausible
from macl.utils.errors import RefusedCaseError

ASEG = [0, 2, 3, 4, 5, 7, 8, 41, 42, 43, 77, 85, 251, 252, 253, 254, 255]


def patches(values: list[int]) -> np.ndarray:
    return np.repeat(np.array(values, np.int16), 20).reshape(1, 4, -1)


@pytest.mark.parametrize("values", [ASEG, [*range(105)]])
def test_many_classes_in_patches_are_a_label(values: list[int]) -> None:
    label = patches(values)
    require_plausible(label, count_values(label))


def test_images_and_smeared_masks_are_none() -> None:
    scan = np.random.default_rng(0).integers(0, 200, (4, 30, 30))
    with pytest.raises(RefusedCaseError, match="is it an image"):
        require_plausible(scan, count_values(scan))
    smeared = patches([0, 0, 0, 2, 253, 255, 255])
    with pytest.raises(RefusedCaseError, match="saved with loss"):
        require_plausible(smeared, count_values(smeared))


def test_a_rare_value_is_said() -> None:
    findings = [
        CaseFinding("a", label_values={0: 9, 1: 9}),
        CaseFinding("b", label_values={0: 9, 1: 8, 7: 1}),
    ]
    notes = classes_of(Source("folder", ()), findings).notes
    assert any("Class 7 has 1 voxel in 1 of 2 labels (b)" in note for note in notes)
