"""What could a pre-training step of MACL cost at best: its arithmetic and bytes, beside a card's?

    python benchmarks/floors.py [--size 512] [--width 32] [--teraflops 989] [--terabytes 3.35]
        [--json FILE]

Nothing is computed: shapes alone pass through the network, on any machine. Arithmetic counts the
multiplications and additions of convolutions and matrix products, forward and backward. Bytes count
what must pass the card's memory in bf16 if all else is fused with its neighbours. A convolution
reads its input and writes its output; backward it reads the output's gradient twice and its input
once, and writes the input's gradient. A norm with its activation reads its input twice and writes
its output; backward it reads input and gradient twice and writes one. What is kept for the backward
pass, in bf16 and uncompiled, is the least memory that the step can take. The defaults are the
maker's figures of an H100 SXM.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from common import publish
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from macl.methods.macl import Macl
from macl.models.unet import UNet

BYTES = 2


def bytes_moved(task: nn.Module, run: Callable[[], object]) -> int:
    """Bytes that one forward pass and its backward pass must move."""
    total = 0

    def convolution(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += BYTES * 3 * (inputs[0].numel() + output.numel())

    def norm(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += BYTES * 8 * output.numel()

    for module in task.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(convolution)
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(norm)
    run()
    return total


def bytes_kept(run: Callable[[], object]) -> int:
    """Bytes that an uncompiled forward pass in bf16 keeps for the backward pass."""
    sizes: dict[int, int] = {}
    storages = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages.append(storage)  # held, so that no other storage takes its place in memory
        sizes[storage._cdata] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        run()
    return sum(sizes.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument(
        "--teraflops", type=float, default=989.0, help="of the card per second, dense bf16"
    )
    parser.add_argument(
        "--terabytes", type=float, default=3.35, help="of the card's memory per second"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    settings, batch = Macl.Settings(), arguments.batch
    with FakeTensorMode():
        network = UNet(
            UNet.Settings(width=arguments.width), 1, decoder_blocks=settings.decoder_blocks
        )
        task = Macl(settings, network)
        image = torch.empty(batch, 1, arguments.size, arguments.size)
        positions = torch.empty(batch, 1)

        def loss() -> Tensor:
            return task.losses(task(image, image, image, image), positions).loss

        with FlopCounterMode(display=False) as counter:
            loss().backward()
        kept = bytes_kept(loss)
        moved = bytes_moved(task, lambda: task(image, image, image, image))
    operations = counter.get_total_flops()
    figures = {
        "batch": batch,
        "size": arguments.size,
        "width": arguments.width,
        "gigaflop_per_slice": operations / batch / 1e9,
        "megabytes_per_slice": moved / batch / 1e6,
        "arithmetic_floor_ms_per_slice": operations / batch / arguments.teraflops / 1e9,
        "kept_for_backward_mib": kept / 2**20,
        "bytes_floor_ms_per_slice": moved / batch / arguments.terabytes / 1e9,
    }
    publish(figures, arguments.json, torch.device("cpu"))


if __name__ == "__main__":
    main()
