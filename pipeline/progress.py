"""Progress with rate and time left: a bar on a terminal, a line every so often anywhere else."""

import sys
from datetime import timedelta
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 20.0
_hidden = False


def hide_progress(hidden: bool = True) -> None:
    """Whether progress is shown from here on."""
    global _hidden
    _hidden = hidden


class _Lines:
    """A stream for tqdm that turns each redrawn bar into a line of its own."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self.stream.write(line + "\n")

    def flush(self) -> None:
        self.stream.flush()


def duration(seconds: float) -> str:
    """75 -> 0:01:15; at least a second."""
    return str(timedelta(seconds=max(1, round(seconds))))


def progress(description: str, total: int, unit: str, **options: Any) -> tqdm:
    """A tqdm bar on stderr; use as a context manager and call `update`."""
    options["disable"] = _hidden or options.get("disable", False)
    if sys.stderr.isatty():
        return tqdm(desc=description, total=total, unit=unit, dynamic_ncols=True, unit_scale=True, **options)
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        unit_scale=True,
        file=_Lines(sys.stderr),
        mininterval=SECONDS_BETWEEN_LINES,
        maxinterval=SECONDS_BETWEEN_LINES,
        bar_format="{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        **options,
    )
