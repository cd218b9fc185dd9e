"""Complete settings of runs: patches from the store, the network from the initial weights."""

from __future__ import annotations

import math

import pytest

from fakes.toy_store import write_toy_store
from macl.config.recipes import resolve
from macl.config.settings import FinetuneSettings, SpatialSettings
from macl.data.store import Store
from macl.io.geometry import ANATOMICAL_AXES
from macl.models.network import total_stride
from macl.models.unet import UNet
from macl.tasks.networks import PATCH_VOXELS, median_spacing_mm, resolve_patch
from macl.tasks.run_settings import finetune_settings, pretrain_settings
from macl.tasks.segmentation import mirror_axes
from macl.utils.errors import MaclError

VOLUMES = ["dims=3"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Volumes of 24 slices, 5 mm apart, of about 40 × 40 pixels of 1 mm."""
    folder = tmp_path_factory.mktemp("settings") / "toy.store"
    return write_toy_store(folder, patients=3, slices=24, side=40)


def with_sizes(store: Store, *sizes: tuple[int, int, int], spacing_mm=(1.0, 1.0, 1.0)) -> Store:
    """The index of a store whose cases have these sizes."""
    case = store.index.cases[0]
    cases = tuple(
        case.model_copy(update={"name": str(number), "size": size, "spacing_mm": spacing_mm})
        for number, size in enumerate(sizes)
    )
    return Store(store.path, store.index.model_copy(update={"cases": cases}))


def automatic(store: Store, dims: int = 3) -> tuple[int, ...]:
    settings = resolve(FinetuneSettings, {}, [f"dims={dims}", "training.size=auto"])
    return resolve_patch(settings, UNet, store, total_stride).patch


def test_a_patch_spans_small_volumes_whole(store: Store) -> None:
    """nnU-Net's patch for the hippocampus."""
    hippocampus = with_sizes(store, (33, 48, 34), (36, 51, 36), (35, 50, 35))
    assert automatic(hippocampus) == (40, 56, 40)


@pytest.mark.parametrize(
    ("size", "spacing_mm"),
    [((300, 512, 512), (1.0, 1.0, 1.0)), ((90, 512, 512), (5.0, 0.8, 0.8)), ((20, 400, 300), None)],
)
def test_a_patch_of_large_volumes_is_a_cube_in_millimetres_of_the_allowed_size(
    store: Store, size: tuple[int, int, int], spacing_mm: tuple[float, float, float] | None
) -> None:
    patch = automatic(with_sizes(store, size, spacing_mm=spacing_mm))
    allowed = PATCH_VOXELS["finetune"][3]
    assert 0.6 * allowed < math.prod(patch) < 1.4 * allowed
    edges = [side * mm for side, mm in zip(patch, spacing_mm or (1.0,) * 3, strict=True)]
    inner = [edge for edge, side, of in zip(edges, patch, size, strict=True) if side < of]
    assert max(inner) < 1.5 * min(inner)


def test_a_patch_of_slices_has_two_sides(store: Store) -> None:
    assert automatic(with_sizes(store, (9, 216, 256)), dims=2) == (224, 256)


@pytest.mark.parametrize("method", ["macl", "simclr"])
def test_slices_that_are_contrasted_by_height_are_whole(store: Store, method: str) -> None:
    recipe = {"macl": "macl-plus"}.get(method, method)
    slices = with_sizes(store, (9, 90, 100))
    settings, _ = pretrain_settings(recipe, [], method=method, store=slices)
    assert settings.patch == {"macl": (128, 128), "simclr": (96, 112)}[method]


@pytest.mark.parametrize(
    ("largest", "size", "backbone", "warns"),
    [
        (55, 256, "unet", True),
        (55, 64, "unet", False),
        (40, 64, "unet", True),
        (40, 64, "ukan", False),
    ],
)
def test_patches_that_are_mostly_padding_are_warned_of(
    store: Store,
    largest: int,
    size: int,
    backbone: str,
    warns: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """U-KAN takes nothing smaller than 64."""
    overrides = [f"training.size={size}", f"backbone={backbone}"]
    slices = with_sizes(store, (9, 30, 40), (9, largest, largest))
    finetune_settings("strong", overrides, store=slices, init="scratch", init_network={})
    warning = f"Patches of {size} × {size} voxels are mostly padding here: "
    assert (warning in capsys.readouterr().err) is warns


def test_patches_that_are_contrasted_by_position_are_smaller_than_the_volumes(store: Store) -> None:
    contrasted, _ = pretrain_settings("pcl", VOLUMES, method="pcl", store=store)
    others, _ = pretrain_settings("simclr", VOLUMES, method="simclr", store=store)
    sizes = (24, 40, 40)
    assert all(side < size for side, size in zip(contrasted.patch, sizes, strict=True))
    assert all(side >= size for side, size in zip(others.patch, sizes, strict=True))
    assert (contrasted.patients_per_position, others.patients_per_position) == (4, 1)


def test_without_a_store_a_size_must_be_given() -> None:
    with pytest.raises(MaclError, match=r"no store is named: add --set training\.size"):
        pretrain_settings("macl-3d", [], method=None, store=None)
    size = ["training.size=[16, 64, 64]"]
    settings, _ = pretrain_settings("macl-3d", size, method=None, store=None)
    assert settings.patch == (16, 64, 64)


def test_the_spacing_is_the_median_or_unknown(store: Store) -> None:
    assert median_spacing_mm(store, 3) == (5.0, 1.0, 1.0)
    assert median_spacing_mm(store, 2) is None
    assert median_spacing_mm(with_sizes(store, (8, 8, 8), spacing_mm=None), 3) is None


def test_the_network_of_the_weights_is_taken_over(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    strides = [[1, 2, 2], [2, 2, 2]]
    network = {
        "dims": 3,
        "backbone": "unet",
        "backbone_settings": {"width": 6, "strides": strides},
    }

    def settings(*overrides: str) -> FinetuneSettings:
        return finetune_settings("strong", overrides, store=store, init="run", init_network=network)

    taken = settings()
    assert taken.dims == 3
    assert taken.model_dump(mode="json")["backbone_settings"] == network["backbone_settings"]
    expected = "The network is that of run: 3D unet, width 6, strides [[1, 2, 2], [2, 2, 2]]."
    assert expected in capsys.readouterr().err
    other = settings("backbone_settings.width=8").model_dump(mode="json")["backbone_settings"]
    assert other == {"width": 8, "strides": strides}
    assert "The network is that of" not in capsys.readouterr().err
    with pytest.raises(MaclError, match="run holds weights of a 3D network, but dims is 2"):
        settings("dims=2")
    with pytest.raises(MaclError, match="no backbone called 'resnet'"):
        settings('backbone="resnet"')


# ---------------------------------------------------------------- anatomy


def without_orientation(store: Store) -> Store:
    """The store as if its first scan were a photograph."""
    first, *others = store.index.cases
    geometry = first.geometry.model_copy(update={"spacing_known": False})
    cases = (first.model_copy(update={"geometry": geometry}), *others)
    return Store(store.path, store.index.model_copy(update={"cases": cases}))


def views_of(store: Store, recipe: str, *overrides: str) -> SpatialSettings:
    settings, _ = pretrain_settings(recipe, overrides, method=None, store=store)
    views = settings.method_settings.views  # pyright: ignore[reportAttributeAccessIssue]
    return views if isinstance(views, SpatialSettings) else views.spatial


@pytest.mark.parametrize("recipe", ["macl-plus", "pcl", "masked", "dira", "byol"])
def test_views_of_oriented_scans_keep_their_orientation(
    store: Store, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    views = views_of(store, recipe)
    assert (views.mirror, views.rotation_degrees, views.tilt_degrees) == (0.0, 30.0, 30.0)
    assert "anatomy: oriented" in capsys.readouterr().err
    free = views_of(without_orientation(store), recipe)
    assert (free.mirror, free.rotation_degrees) == (0.5, 180.0)
    assert "1 of 3 scans do not say how they lie" in capsys.readouterr().err


def test_the_papers_recipe_stays_as_published(store: Store) -> None:
    assert views_of(store, "macl") == SpatialSettings()
    assert views_of(store, "macl", "anatomy=oriented").mirror == 0.0


@pytest.mark.parametrize("recipe", ["strong", "paper"])
def test_fine_tuning_of_oriented_scans(store: Store, recipe: str) -> None:
    settings = finetune_settings(recipe, (), store=store, init="scratch", init_network={})
    axes = mirror_axes(settings, ("background", "heart"), ANATOMICAL_AXES["axial"])
    largest = settings.augmentation.spatial.rotation_degrees
    assert (axes, largest) == (((), 30.0) if recipe == "strong" else (("row", "column"), 180.0))


def test_axes_named_by_hand_are_mirrored_in_oriented_anatomy_too(store: Store) -> None:
    settings = finetune_settings(
        "strong", ['mirror_axes=["left-right"]'], store=store, init="scratch", init_network={}
    )
    assert settings.anatomy == "oriented"
    assert settings.augmentation.spatial.mirror == 0.5
    assert mirror_axes(settings, ("background", "brain"), ANATOMICAL_AXES["axial"]) == ("column",)


def test_gentler_views_stay_as_gentle(store: Store) -> None:
    views = views_of(store, "macl-plus", "method_settings.views.rotation_degrees=10")
    assert views.rotation_degrees == 10.0
