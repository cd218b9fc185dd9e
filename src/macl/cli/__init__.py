"""The command `macl`: one sub-command per stage."""

# Importing a module registers its commands.
from macl.cli import features, results, scans, training, workflows
from macl.cli.app import app
from macl.cli.entry import main

__all__ = ["app", "features", "main", "results", "scans", "training", "workflows"]
