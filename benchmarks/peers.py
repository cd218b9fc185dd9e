"""How much processor time does macl take beside its peers, from scans to scores?

    python benchmarks/peers.py [STORE] [--scans FOLDER] [--spacing-mm MM] [--size 192] [--batch 8]
        [--width 16] [--turns 10] [--volumes 3] [--json FILE]

Run in an environment with macl; MONAI, nnU-Net (nnunetv2), and for scores medpy and
surface-distance, are measured where they are installed.
All take turns in one process on one thread, and the figure is processor time, which other work on
the machine hardly changes. All train and predict with the same network, macl's U-Net, on the same
cases, which lie normalised in memory.

A fine-tuning iteration makes a batch and takes a step: macl's recipe `strong`; the same
augmentation, loss and optimiser written with MONAI's transforms; and nnU-Net's own augmentation,
loss, optimiser and clipping, with one scale of its loss. A prediction takes a volume to its mask:
windows that overlap by half, Gaussian weights and the same mirror images. STORE is a store with
labels; without one, synthetic slices stand in. Labels against shifted labels are scored in 3D.
With --scans, 20 labelled scans of a folder of NIfTI files are prepared too.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import make_parser, publish, synthetic_store
from peers_data import is_installed, preparations, scorings
from torch import Tensor, nn

from macl.config.settings import FinetuneSettings
from macl.data.loader import Loader
from macl.data.patch_cache import PatchCache
from macl.data.sampling import EpochSampler, find_class_voxels
from macl.data.store import Store
from macl.engine.optimisation import MovingAverage
from macl.engine.precision import has_bf16
from macl.engine.stepper import Stepper
from macl.engine.trainer import make_fabric
from macl.inference.sliding_window import SegmenterMember, predict_slices
from macl.plugins import find
from macl.preprocessing.normalisation import normalise
from macl.tasks.run_settings import finetune_settings
from macl.tasks.segmentation import SegmentationTask, build_segmenter
from macl.utils.allocator import keep_freed_memory

MIRRORS = ("row", "column")
STEPS_AHEAD = 100_000
SCANS = 20


@dataclass(frozen=True)
class Measured:
    """What all programs get.

    Attributes:
        store, cases: the cases to train on.
        settings: of the recipe, resolved.
        arguments: as given.
    """

    store: Store
    cases: tuple[str, ...]
    settings: FinetuneSettings
    arguments: argparse.Namespace

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.store.index.classes)

    def network(self) -> nn.Module:
        """The same network with the same weights each time."""
        torch.manual_seed(0)
        channels = len(self.store.index.channels)
        return build_segmenter(self.settings, find("models", "unet"), channels, self.classes)

    def volume(self, name: str) -> Tensor:
        """(C, Z, Y, X) float32, normalised."""
        return torch.from_numpy(
            normalise(self.store.read(name), self.store.case(name).normalisation)
        )

    def slices(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(C, Y, X) images and (1, Y, X) labels of every slice, without end, in a random order."""
        slices = [
            (image, label[None])
            for name in self.cases
            for image, label in zip(
                self.volume(name).unbind(1),
                torch.from_numpy(self.store.read(name, "label")).float(),
                strict=True,
            )
        ]
        random = np.random.default_rng(0)
        while True:
            yield from (slices[number] for number in random.permutation(len(slices)))


# ---------------------------------------------------------------- fine-tuning


def macl_iteration(measured: Measured, precision: str) -> Callable[[], object]:
    """As the loop of `macl finetune` takes it."""
    settings = measured.settings
    training = settings.training.model_copy(update={"precision": precision})
    fabric = make_fabric("cpu", training.precision)
    cache = PatchCache(measured.store, measured.cases, True, fabric.device)
    voxels = find_class_voxels(measured.store, cache.volumes)
    sampler = EpochSampler(
        cache.volumes,
        settings.patch,
        training.batch_size,
        seed=0,
        foreground_share=settings.foreground_share,
        class_voxels=voxels,
    )
    loader = Loader(cache, sampler)
    task = SegmentationTask(measured.network(), settings, ())  # pyright: ignore[reportArgumentType]
    stepper = Stepper(task, training, fabric)
    average = MovingAverage(task, training.ema_decay or 0.999)
    batches = enumerate(loader.between(0, STEPS_AHEAD), start=1)

    def iterate() -> None:
        number, batch = next(batches)
        stepper(batch)
        average.update(number)

    return iterate


def monai_iteration(measured: Measured) -> Callable[[], object]:
    """The same augmentation, loss and optimiser, as a MONAI user would write them."""
    from monai import transforms
    from monai.losses.dice import DiceCELoss
    from monai.utils.type_conversion import convert_to_tensor

    settings, both = measured.settings, ["image", "label"]
    spatial, intensity = settings.augmentation.spatial, settings.augmentation.intensity
    zoom = (spatial.scale[0] - 1, spatial.scale[1] - 1)
    turn = np.deg2rad(spatial.rotation_degrees)
    foreground = settings.foreground_share
    changed = transforms.Compose(
        [
            transforms.SpatialPadd(both, settings.patch),
            transforms.RandCropByPosNegLabeld(
                both, "label", settings.patch, pos=foreground, neg=1 - foreground
            ),
            transforms.Rand2DElasticd(
                both, 30.0, (1.0, 2.0), settings.patch, spatial.deform, turn,
                scale_range=[zoom, zoom], mode=["bilinear", "nearest"], padding_mode="zeros",
            ),
            transforms.RandGaussianNoised("image", intensity.noise, std=0.15),
            transforms.RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), prob=intensity.blur),
            transforms.RandScaleIntensityd("image", 0.25, prob=intensity.brightness),
            transforms.RandScaleIntensityFixedMeand("image", factors=0.25, prob=intensity.contrast),
            transforms.RandSimulateLowResolutiond(
                "image", intensity.low_resolution, upsample_mode="bilinear"
            ),
            transforms.RandAdjustContrastd(
                "image", intensity.gamma, (0.7, 1.5), retain_stats=True
            ),
        ]
    )  # fmt: skip
    network = measured.network()
    compare = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    training = settings.training
    optimiser = torch.optim.AdamW(
        network.parameters(), training.learning_rate, weight_decay=training.weight_decay
    )
    slices = measured.slices()

    def iterate() -> None:
        chosen = itertools.islice(slices, training.batch_size)
        made = [changed({"image": image, "label": label})[0] for image, label in chosen]
        images, labels = (
            torch.stack([convert_to_tensor(each[key], track_meta=False) for each in made])
            for key in both
        )
        loss = compare(network(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), training.gradient_clip or 12.0)
        optimiser.step()
        optimiser.zero_grad()

    return iterate


def nnunet_iteration(measured: Measured) -> Callable[[], object]:
    """nnU-Net's own augmentation, loss, optimiser and clipping."""
    from nnunetv2.training.loss.compound_losses import (  # pyright: ignore[reportMissingImports]
        DC_and_CE_loss,
    )
    from nnunetv2.training.loss.dice import (  # pyright: ignore[reportMissingImports]
        MemoryEfficientSoftDiceLoss,
    )
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import (  # pyright: ignore
        nnUNetTrainer,
    )

    patch, batch = measured.settings.patch, measured.settings.training.batch_size
    turn = (-np.pi, np.pi) if max(patch) / min(patch) <= 1.5 else (-np.pi / 12, np.pi / 12)
    changed = nnUNetTrainer.get_training_transforms(patch, turn, None, (0, 1), False)
    network = measured.network()
    compare = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    optimiser = torch.optim.SGD(
        network.parameters(), 1e-2, momentum=0.99, weight_decay=3e-5, nesterov=True
    )
    slices, random = measured.slices(), np.random.default_rng(0)

    def cut(image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """A window around a voxel of a structure for a third of the slices, as nnU-Net's loader."""
        pads = [max(0, of - side) for side, of in zip(image.shape[1:], patch, strict=True)]
        around = (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2)
        image = nn.functional.pad(image, around)
        label = nn.functional.pad(label, around, value=-1)
        rooms = [side - of for side, of in zip(image.shape[1:], patch, strict=True)]
        starts = [int(random.integers(0, room + 1)) for room in rooms]
        if random.random() < 0.33 and len(places := (label[0] > 0).nonzero()):
            middle = places[int(random.integers(len(places)))].tolist()
            starts = [
                min(max(place - of // 2, 0), room)
                for place, of, room in zip(middle, patch, rooms, strict=True)
            ]
        (y, x), (rows, columns) = starts, patch
        window = (slice(None), slice(y, y + rows), slice(x, x + columns))
        return changed(image=image[window], segmentation=label[window].short())

    def iterate() -> None:
        made = [cut(*each) for each in itertools.islice(slices, batch)]
        images = torch.stack([each["image"] for each in made])
        labels = torch.stack([each["segmentation"] for each in made])
        optimiser.zero_grad(set_to_none=True)
        compare(network(images), labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimiser.step()

    return iterate


# ---------------------------------------------------------------- prediction


def macl_prediction(measured: Measured, bf16: bool) -> Callable[[str], np.ndarray]:
    """As `macl predict` segments a case of a store, on the store's grid."""
    patch = measured.settings.patch
    member = SegmenterMember(measured.network().eval(), patch, MIRRORS, bf16)

    def segment(name: str) -> np.ndarray:
        case, image = measured.store.case(name), measured.store.read(name)
        slices = predict_slices([member], image, case.normalisation)
        return np.stack([plane.argmax(0).astype(np.uint8) for plane in slices])

    return segment


def monai_prediction(measured: Measured) -> Callable[[str], np.ndarray]:
    """MONAI's sliding window over slices, which are its batch."""
    from monai.inferers.utils import sliding_window_inference

    network, patch = measured.network().eval(), measured.settings.patch
    flips = [(), (-2,), (-1,), (-2, -1)]

    @torch.inference_mode()
    def segment(name: str) -> np.ndarray:
        slices = measured.volume(name).movedim(1, 0)
        total: Any = 0
        for flip in flips:
            logits = sliding_window_inference(
                slices.flip(flip), patch, 16, network, overlap=0.5, mode="gaussian"
            )
            assert isinstance(logits, Tensor)
            total = total + logits.softmax(1).flip(flip)
        return total.argmax(1).byte().numpy()

    return segment


def nnunet_prediction(measured: Measured) -> Callable[[str], np.ndarray]:
    """nnU-Net's predictor, with a network of ours in it."""
    from nnunetv2.inference.predict_from_raw_data import (  # pyright: ignore[reportMissingImports]
        nnUNetPredictor,
    )

    cpu = torch.device("cpu")
    predictor = nnUNetPredictor(device=cpu, perform_everything_on_device=False, allow_tqdm=False)
    predictor.network = measured.network().eval()
    predictor.allowed_mirroring_axes = (0, 1)
    predictor.configuration_manager = SimpleNamespace(patch_size=measured.settings.patch)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=measured.classes)

    def segment(name: str) -> np.ndarray:
        logits = predictor.predict_sliding_window_return_logits(measured.volume(name))
        return logits.argmax(0).byte().numpy()

    return segment


# ---------------------------------------------------------------- taking turns


def take_turns(works: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Processor milliseconds of every program's work, turn by turn, after one turn to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(-1, turns):
        for name, work in works.items():
            start = time.process_time()
            work()
            if turn >= 0:
                taken[name].append(1000 * (time.process_time() - start))
    return taken


def compare(taken: Mapping[str, Sequence[float]], reference: str) -> dict[str, Any]:
    """Medians, and how many times as much as the reference each takes: median and quartiles."""
    rows: dict[str, Any] = {}
    for name, times in taken.items():
        ratios = [own / ours for own, ours in zip(times, taken[reference], strict=True)]
        low, middle, high = (
            statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        )
        rows[name] = {
            "ms": statistics.median(times),
            f"times_{reference}": {"median": middle, "from": low, "to": high},
        }
    return rows


def main() -> None:
    parser = make_parser(__doc__, size=192, batch=8, width=16, turns=10, volumes=3)
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--scans", type=Path, metavar="FOLDER")
    parser.add_argument("--spacing-mm", type=float, metavar="MM", help="to prepare the scans at")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.filterwarnings("ignore", module="monai")  # of slices without a structure
    with tempfile.TemporaryDirectory() as scratch:
        store = (
            Store.open(arguments.store)
            if arguments.store
            else synthetic_store(Path(scratch) / "synthetic.store", 4, 8, arguments.size + 32)
        )
        changes = {
            "training.size": arguments.size,
            "training.batch_size": arguments.batch,
            "backbone_settings.width": arguments.width,
        }
        overrides = [f"{name}={value}" for name, value in changes.items()]
        settings = finetune_settings(
            "strong", overrides, store=store, init="scratch", init_network={}
        )
        cases = tuple(name for name, case in store.cases.items() if case.labelled)[:8]
        measured = Measured(store, cases, settings, arguments)

        iterations = {"macl_fp32": macl_iteration(measured, "fp32")}
        predictions = {"macl_fp32": macl_prediction(measured, bf16=False)}
        if has_bf16("cpu"):
            iterations["macl_bf16"] = macl_iteration(measured, "bf16")
            predictions["macl_bf16"] = macl_prediction(measured, bf16=True)
        if is_installed("monai"):
            iterations["monai"] = monai_iteration(measured)
            predictions["monai"] = monai_prediction(measured)
        if is_installed("nnunetv2"):
            iterations["nnunet"] = nnunet_iteration(measured)
            predictions["nnunet"] = nnunet_prediction(measured)
        names = cases[: arguments.volumes]
        works: dict[str, Callable[[], object]] = {
            program: lambda segment=segment: [segment(name) for name in names]
            for program, segment in predictions.items()
        }
        masks = {name: segment(names[0]) for name, segment in predictions.items()}
        figures = {
            "size": arguments.size,
            "batch": arguments.batch,
            "width": arguments.width,
            "turns": arguments.turns,
            "cases": len(cases),
            "volumes": len(names),
            "fine_tuning_iteration": compare(take_turns(iterations, arguments.turns), "macl_fp32"),
            "prediction_of_the_volumes": compare(take_turns(works, arguments.turns), "macl_fp32"),
            "share_of_voxels_predicted_alike": {
                name: float((mask == masks["macl_fp32"]).mean()) for name, mask in masks.items()
            },
            "scoring": compare(take_turns(scorings(store, cases), arguments.turns), "macl"),
        }
        if arguments.scans:
            with preparations(arguments.scans, SCANS, arguments.spacing_mm) as works:
                figures["preparing"] = compare(take_turns(works, arguments.turns), "macl")
    publish(figures, arguments.json, torch.device("cpu"))


if __name__ == "__main__":
    main()
