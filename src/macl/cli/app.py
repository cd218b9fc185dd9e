"""`macl` itself: its help, what every command prints, and what is said of mistakes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import macl
from macl.utils.progress import be_quiet, say
from macl.utils.ranks import require_single_process, this_rank

EXAMPLES = {
    "demo": "macl demo --out demo",
    "run": "macl run scans --labels masks --out first --minutes 30",
    "inspect": "macl inspect scans",
    "prepare": "macl prepare scans my.store",
    "split": "macl split my.store --out my.json --test 20% --budgets 8,25%",
    "pretrain": "macl pretrain my.store --split my.json --out runs/macl",
    "embed": "macl embed my.store --run runs/macl --out features.npz",
    "choose": "macl choose my.store --run runs/macl --count 8 --out chosen.csv",
    "finetune": "macl finetune my.store --split my.json --labels 8 --init runs/macl "
    "--out runs/macl-8",
    "selftrain": "macl selftrain my.store --split my.json --labels 8 --init runs/macl-8 "
    "--out runs/macl-8-self",
    "predict": "macl predict runs/macl-8 scan.nii.gz --out masks",
    "evaluate": "macl evaluate masks my.store --out cases.csv",
    "check": "macl check my.store",
    "export": "macl export runs/macl --to nnunet --plans nnUNetPlans.json "
    "--configuration 3d_fullres --out macl.pth",
    "profile": "macl profile --store my.store",
    "benchmark": "macl benchmark grid.toml --out bench",
    "report": "macl report runs/macl-8 runs/scratch-8 --out report.html",
    "settings": "macl settings finetune",
}
"""One call of every command, for its help and for the answer to a missing argument."""


class _Commands(TyperGroup):
    """All commands: each has an example in its help, and in the answer to a missing argument."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: self.commands[name] for name in EXAMPLES}
        for name, command in self.commands.items():
            # After \b a line is not broken, so that it can be copied.
            command.epilog = f"\b\nExample: {EXAMPLES[name]}"

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            context: Any = getattr(error, "ctx", None)
            name = context.info_name if context else None
            if type(error).__name__ == "MissingParameter" and name in EXAMPLES:
                vars(error)["message"] = f"For example: {EXAMPLES[name]}"
            elif message := vars(error).get("message"):
                vars(error)["message"] = message.removeprefix("Value error, ")
            raise


class CommandWithSettings(TyperCommand):
    """A command that says of `--batch-size 4` how that setting is given: with --set."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            option = str(getattr(error, "option_name", ""))
            if option:
                _name_the_setting(error, option.lstrip("-").replace("-", "_"))
            raise


def _name_the_setting(error: Any, name: str) -> None:
    from macl.config.settings import FinetuneSettings, PretrainSettings, setting_names

    short = {"lr": "learning_rate", "patch_size": "size", "bs": "batch_size"}
    wanted = short.get(name, name)
    names = dict.fromkeys((*setting_names(PretrainSettings), *setting_names(FinetuneSettings)))
    if found := next((full for full in names if full.rpartition(".")[2] == wanted), None):
        error.message = f"{error.message}: use --set {found}=…"
        error.possibilities = None


def print_result(as_json: bool, values: Mapping[str, Any], text: str = "") -> None:
    """Print a command's result to stdout: one JSON object, or a text for people."""
    if as_json and this_rank().is_zero:
        print(json.dumps(values, indent=1, ensure_ascii=False, default=str))
    elif text and not as_json:
        print(text)


def name_next(*commands: tuple[object, ...]) -> None:
    """Say which commands come next on the path."""
    for number, words in enumerate(commands):
        say(f"{'     ' if number else 'Next:'} macl {shlex.join(map(str, words))}")


def _print_version(requested: bool) -> None:
    if requested:
        from macl.utils.commit import commit_of_macl

        commit = commit_of_macl()
        print(f"macl {macl.__version__}{f' (commit {commit})' if commit else ''}")
        raise typer.Exit


app = typer.Typer(
    name="macl",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From unlabelled scans and a handful of labels to a segmentation model.",
    epilog="The path: inspect → prepare → split → pretrain → finetune → selftrain → predict → "
    "evaluate → report.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def check_launch(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            help="Print no progress and no messages, only results and warnings; for any command.",
        ),
    ] = False,
) -> None:
    """Refuse several processes for commands that cannot share their work."""
    be_quiet(quiet)
    if context.invoked_subcommand not in ("pretrain", "finetune", "selftrain"):
        require_single_process(f"macl {context.invoked_subcommand}")
