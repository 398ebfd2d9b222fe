"""What the commands say: the pipeline's log on stderr, clear of any progress bar, with commands that can be pasted.

No terminal, pipe or disk at the other end can end a command that has something to say.
"""

import codecs
import contextlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from exact_ntk.cli.defaults import RESULTS, RUNS
from exact_ntk.progress import hide_progress

log = logging.getLogger("ntk")
STAGES = "run|download|compute-gram|solve|train-cnn|report|status|plan"
NO_RUNS, WITH_RESULTS, WITH_MEMORY = ("download",), ("run", "report"), ("run", "solve", "plan")

_typed: tuple[str, tuple[str, ...], Path, Path, str, str | None, bool] | None = None


def remember(
    config: str,
    overrides: list[str],
    runs: Path,
    results: Path,
    device: str,
    memory: str | None = None,
    pictures: bool = False,
) -> None:
    """What the user typed after the command."""
    global _typed
    _typed = config, tuple(overrides), runs, results, device, memory, pictures


def pasteable(text: str) -> str:
    """The text with every command it names, such as `ntk solve`, as this user would have to type it."""
    return re.sub(rf"`ntk ({STAGES})((?: --[a-z]+)*)`", _in_full, text)


def _in_full(match: re.Match) -> str:
    command, options = match[1], match[2].split()
    if _typed is None:
        return match[0]
    config, overrides, runs, results, device, memory, pictures = _typed
    words = [*options, config, *(word for o in overrides for word in ("--set", o))]
    if runs != RUNS and command not in NO_RUNS:
        words += ["--runs", str(runs)]
    if results != RESULTS and command in WITH_RESULTS:
        words += ["--results", str(results)]
    if device != "auto" and command not in NO_RUNS:
        words += ["--device", device]
    if memory is not None and command in WITH_MEMORY:
        words += ["--memory", memory]
    if pictures and command in WITH_RESULTS:
        words += ["--pictures"]
    return f"`ntk {command} {shlex.join(words)}`"


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        line = pasteable(self.format(record)) + "\n"  # written in one, so that a signal leaves no half of it
        tqdm.write(line, file=sys.stderr, end="")
        sys.stderr.flush()


def show_log() -> None:
    """Print what the pipeline has to say; stdout is kept for results."""
    log.setLevel(logging.INFO)
    hide_progress(False)
    if not any(isinstance(handler, _Console) for handler in log.handlers):
        log.addHandler(_Console())


def be_quiet() -> None:
    """From here on no more than warnings and errors, and no progress."""
    log.setLevel(logging.WARNING)
    hide_progress()


# In place of signs that the stream's encoding lacks: those of the tables, apart from one another.
PLAIN = {"±": "+-", "†": "*", "‡": "**", "§": "#", "¶": "##", "–": "-"}


def _in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


class _Steady:
    """A text stream that takes everything: what can no longer be written is dropped. lost: why, where that is so."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        """On an error lead the stream nowhere, so that what its buffer holds raises nothing when Python ends."""
        try:
            yield
        except (OSError, ValueError) as error:
            self.lost = self.lost or (error if isinstance(error, OSError) else None)
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """Printing raises nothing inside: not for signs that stdout or stderr cannot encode, nor where either is closed, a
    pipe without a reader or on a full disk."""
    codecs.register_error("ntk-plain", _in_plain_signs)
    # A closed stream's number would go to the next file that is opened, and what libraries print into that file.
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(nowhere)
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="ntk-plain")
    out, err = (_Steady(s or os.fdopen(number, "w", closefd=False)) for number, s in enumerate(before, start=1))
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.flush()
        if out.lost and not isinstance(out.lost, BrokenPipeError):
            print(f"stdout cannot be written: {out.lost.strerror}", file=err)
        err.flush()
        sys.stdout, sys.stderr = before
