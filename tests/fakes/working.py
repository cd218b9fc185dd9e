"""Work for other processes, which import it by name."""

from __future__ import annotations

import time
from pathlib import Path


def sleep_and_touch(task: tuple[float, str]) -> None:
    """Sleep for some seconds, then make a file."""
    seconds, file = task
    time.sleep(seconds)
    Path(file).touch()
