"""The notebook in docs/ runs from its first cell to its last, and its mask fits the scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "from_folder_to_mask.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nilearn")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "the notebook is kept without outputs"
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    mask, scan = (
        SimpleITK.ReadImage(str(path))
        for path in (tmp_path / "notebook/mask.nii.gz", names["scan"])
    )
    assert mask.GetSize() == scan.GetSize()
    np.testing.assert_allclose(mask.GetOrigin(), scan.GetOrigin(), atol=1e-4)
    found = SimpleITK.GetArrayFromImage(mask)
    assert {*np.unique(found).tolist()} <= {0, 1, 2}
    assert (tmp_path / "notebook" / "report.html").is_file()
