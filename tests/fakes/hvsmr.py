"""HVSMR 2016 in miniature: three versions of every scan, labels in a folder of their own."""

from __future__ import annotations

from pathlib import Path

from fakes.structures import Truth, structures, write_oriented


def write(folder: Path) -> dict[str, Truth]:
    """Write patients 0 and 1 with labels and 10 without; truths are those of the short axis."""
    truths: dict[str, Truth] = {}
    for version_folder, version in (
        ("Axial-cropped", "axial_crop"),
        ("Full volume", "axial_full"),
        ("Short-axis", "sa_crop"),
    ):
        for patient in (0, 1, 10):
            image, label = structures(10 * patient + len(version), 2)
            name = f"{'training' if patient < 10 else 'testing'}_{version}_pat{patient}"
            part = "Training dataset" if patient < 10 else "Test dataset"
            write_oriented(
                folder / version_folder / part / f"{name}.nii.gz", image, "RAS", (0.9, 0.9, 0.85)
            )
            if patient < 10:
                write_oriented(
                    folder / version_folder / "Ground truth" / f"{name}-label.nii.gz",
                    label,
                    "RAS",
                    (0.9, 0.9, 0.85),
                )
            if version == "sa_crop":
                truths[name] = Truth(f"pat{patient}", image[None], label if patient < 10 else None)
    return truths
