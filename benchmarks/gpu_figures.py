"""Every open figure of docs/performance.md, in order of worth, within a given number of minutes.

    python benchmarks/gpu_figures.py [--minutes 60] [--out gpu-figures] [--device cuda|cpu] [--tiny]
        [--acdc FOLDER] [--hippocampus FOLDER]

Or `make gpu-figures MINUTES=60`. Each figure is a command of its own. What was measured stands in
OUT, so that a later call continues with what is left, as does a command that ran out of time. The
page OUT/gpu_figures_DATE.md is written anew after every figure. With the folders of ACDC and of the
Decathlon's Hippocampus, as downloaded, grids on them are run too, the small ones first. --tiny
tries all of it at a size that a CPU manages in minutes; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

import macl
from macl.utils.commit import commit_of_macl
from macl.utils.errors import MaclError
from macl.utils.files import file_lock, write_json, write_text

HERE = Path(__file__).parent
SYNTHETIC = "{out}/synthetic.store"
SECONDS_TO_END = 30.0
"""A command that is out of time has this long to save its state."""


@dataclass(frozen=True)
class Figure:
    """A question and the command that answers it.

    Attributes:
        name: of its files.
        question: as the page asks it.
        command: the words; `{out}` is the folder of all figures, `{json}` the figure's own file.
        minutes: that it takes on a fast GPU, roughly; it is not begun with less time left.
        target: what the answer should be at most.
    """

    name: str
    question: str
    command: tuple[str, ...]
    minutes: float
    target: str = ""


@dataclass(frozen=True)
class Answer:
    """How a command ended.

    Attributes:
        name: of the figure.
        command: as it would be typed.
        exit_code: None: it ran out of time.
        minutes: that it took, in the last call.
        figures: what it wrote as JSON.
        output: the end of what it printed.
    """

    name: str
    command: str
    exit_code: int | None
    minutes: float
    figures: Mapping[str, Any]
    output: str


# ---------------------------------------------------------------- the figures


def open_figures(arguments: argparse.Namespace) -> list[Figure]:
    """All figures, the most telling first."""
    device, tiny = ("--device", arguments.device), arguments.tiny
    small = ("--size", "64", "--batch", "4", "--width", "4", "--turns", "2") if tiny else ()

    def script(name: str, *words: str, full: Sequence[str] = ()) -> tuple[str, ...]:
        options = small if tiny else tuple(full)
        return sys.executable, str(HERE / name), *device, *words, *options, "--json", "{json}"

    def macl_command(*words: str) -> tuple[str, ...]:
        return sys.executable, "-m", "macl", *words

    step, loop = "pretrain_step.py", "pretrain_loop.py"
    figures = [
        Figure(
            "pretrain_step_16",
            "How long does a pre-training step take, beside the loop over positions (batch 16)?",
            script(step, full=("--batch", "16", "--size", "512")),
            6,
            "1.25 ms a slice of 512 × 512, 6.9 GB",
        ),
        Figure(
            "finetune_step",
            "How fast is a fine-tuning step: plain, compiled, with CUDA graphs?",
            script("finetune_step.py", full=("--batch", "10", "--size", "224")),
            8,
            "5 ms a step",
        ),
        Figure(
            "profile",
            "Where does the time of a pre-training step go?",
            macl_command("profile", *device, "--patches", "17525", *_profiled(tiny)),
            3,
        ),
        *(
            Figure(
                f"pretrain_step_{batch}",
                f"The same at batch {batch}?",
                script(step, full=("--batch", str(batch), "--size", "512")),
                7,
                "1.25 ms a slice of 512 × 512",
            )
            for batch in (32, 64)
        ),
        Figure(
            "pretrain_loop",
            "What do loop, log and checkpoints add? Data on device, host, disk? The CHD-sized job?",
            _loop(loop, device, tiny),
            12,
            "loop 1.05, host 1.10, disk 1.25 of the bare step; 40 minutes for the job",
        ),
        Figure(
            "pretrain_step_3d",
            "A step on volumes of 96³ (batch 4)?",
            script(step, "--dims", "3", full=("--batch", "4", "--size", "96", "--turns", "3"))
            if not tiny
            else (
                *(sys.executable, str(HERE / step), *device, "--dims", "3", "--size", "32"),
                *("--batch", "2", "--width", "4", "--turns", "1", "--json", "{json}"),
            ),
            8,
        ),
    ]
    sizes = ("--size", "64", "--batch", "4", "--width", "4", "--turns", "1")
    if not tiny:
        sizes = ("--size", "256", "--batch", "16", "--width", "32")
    cost = (sys.executable, str(HERE / "methods_cost.py"), SYNTHETIC, *device, *sizes)
    costs = Figure("methods_cost", "What does a patch cost, method by method?", cost, 5)
    return [*figures, *_grids(arguments), costs]


def _profiled(tiny: bool) -> tuple[str, ...]:
    size, batch, mode = (64, 4, "off") if tiny else (512, 16, "default")
    width = ("--set", "backbone_settings.width=4") if tiny else ()
    settings = (f"training.size={size}", f"training.batch_size={batch}", f"training.compile={mode}")
    return (*(word for setting in settings for word in ("--set", setting)), *width)


def _loop(script: str, device: Sequence[str], tiny: bool) -> tuple[str, ...]:
    sizes = (
        ("--slices", "150", "--size", "64", "--batch", "4", "--width", "4", "--epochs", "1")
        if tiny
        else ("--slices", "17525", "--size", "512", "--batch", "16", "--epochs", "3")
    )
    kept = ("--store", SYNTHETIC, "--json", "{json}")
    return sys.executable, str(HERE / script), *device, *sizes, *kept


def _grids(arguments: argparse.Namespace) -> Iterator[Figure]:
    """Preparing a data set, then a grid on it, which resumes where it was stopped."""
    python = (sys.executable, "-m", "macl")
    grids = (
        ("hippocampus", arguments.hippocampus, "hippocampus.store", (), "hippocampus_small.toml"),
        ("acdc", arguments.acdc, "acdc_small.store", ("--spacing-mm", "2.5"), "acdc_small.toml"),
        ("acdc_full", arguments.acdc, "acdc.store", (), "acdc.toml"),
    )
    for name, folder, store, options, grid in grids:
        if folder is None:
            continue
        prepare = (*python, "prepare", str(folder), str(HERE / store), *options)
        yield Figure(f"prepare_{name}", f"(Preparing {name}.)", prepare, 1)
        run = (*python, "benchmark", str(HERE / grid), "--out", f"{{out}}/{name}", "--device")
        yield Figure(
            f"grid_{name}",
            f"Does pre-training help ({grid})?",
            (*run, arguments.device),
            10,
        )


# ---------------------------------------------------------------- running them


def run_within(
    figures: Sequence[Figure], out: Path, minutes: float, about: Mapping[str, str]
) -> list[Answer]:
    """Run what is left, in order, as long as there is time; write the page after each."""
    end = time.monotonic() + 60 * minutes
    answers = {answer.name: answer for figure in figures if (answer := _earlier(out, figure))}
    for number, figure in enumerate(figures, start=1):
        earlier, left = answers.get(figure.name), (end - time.monotonic()) / 60
        if earlier and earlier.exit_code == 0:
            continue
        if left < min(figure.minutes, 0.9 * minutes):
            print(f"{figure.name}: left for another call, {left:.1f} minutes are too few")
            continue
        print(f"[{number}/{len(figures)}] {figure.name}: {figure.question}", flush=True)
        answer = answers[figure.name] = _run(figure, out, 60 * left)
        write_json(out / f"{figure.name}.answer.json", asdict(answer))
        _write_page(out, figures, answers, about)
    _write_page(out, figures, answers, about)
    return [*answers.values()]


def _run(figure: Figure, out: Path, seconds: float) -> Answer:
    found = out / f"{figure.name}.json"
    found.unlink(missing_ok=True)
    words = [
        word.replace("{out}", str(out)).replace("{json}", str(found)) for word in figure.command
    ]
    start = time.monotonic()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        exit_code = None
        try:
            output, _ = process.communicate(timeout=seconds)
            exit_code = process.returncode
        except subprocess.TimeoutExpired:
            output = _end(process)
    figures = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    taken = (time.monotonic() - start) / 60
    return Answer(figure.name, _shown(words), exit_code, taken, figures, output[-4000:])


def _shown(words: Sequence[str]) -> str:
    """A command as it is typed in a checkout."""
    return " ".join(words).replace(sys.executable, "python").replace(f"{HERE.parent}/", "")


def _end(process: subprocess.Popen[str]) -> str:
    """End a command and what it has started; what it printed."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, sign)
        try:
            return process.communicate(timeout=SECONDS_TO_END)[0]
        except subprocess.TimeoutExpired:
            continue
    return ""


def _earlier(out: Path, figure: Figure) -> Answer | None:
    path = out / f"{figure.name}.answer.json"
    return Answer(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


# ---------------------------------------------------------------- the page


def _write_page(
    out: Path, figures: Sequence[Figure], answers: Mapping[str, Answer], about: Mapping[str, str]
) -> None:
    lines = ["# Figures on a GPU" if about["device"] != "cpu" else "# A trial on the CPU", ""]
    lines += [", ".join(f"{name} {value}" for name, value in about.items()), ""]
    lines += ["| question | target, at most | outcome | minutes |", "|---|---|---|---:|"]
    for figure in figures:
        answer = answers.get(figure.name)
        outcome = _outcome(answer)
        taken = f"{answer.minutes:.1f}" if answer else ""
        lines.append(f"| {figure.question} | {figure.target} | {outcome} | {taken} |")
    for figure in figures:
        if (answer := answers.get(figure.name)) is None:
            continue
        lines += ["", f"## {figure.question}", "", f"    {answer.command}", ""]
        if answer.figures:
            lines += ["| figure | value |", "|---|---:|"]
            lines += [f"| {name} | {value} |" for name, value in _flat(answer.figures)]
        else:
            lines += ["```", answer.output.strip(), "```"]
    write_text(out / f"gpu_figures_{date.today().isoformat()}.md", "\n".join(lines) + "\n")


def _outcome(answer: Answer | None) -> str:
    if answer is None:
        return "open"
    if answer.exit_code is None:
        return "out of time, continues in another call"
    return "below" if answer.exit_code == 0 else f"failed (exit code {answer.exit_code})"


def _flat(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-figures"))
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--acdc", type=Path, metavar="FOLDER")
    parser.add_argument("--hippocampus", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU here: add --device cpu --tiny to try the commands.")
    about = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "macl": macl.__version__,
        "commit": commit_of_macl() or "unknown",
    }
    try:
        with file_lock(arguments.out / ".lock", f"Another call is measuring into {arguments.out}."):
            answers = run_within(open_figures(arguments), arguments.out, arguments.minutes, about)
    except MaclError as error:
        raise SystemExit(str(error)) from None
    print(f"{arguments.out}: {sum(answer.exit_code == 0 for answer in answers)} figures measured")


if __name__ == "__main__":
    main()
