"""What the commands say: the pipeline's log on stderr, clear of any progress bar, with commands that can be pasted."""

import logging
import re
import shlex
import sys
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("ntk")
STAGES = "run|download|compute-gram|solve|train-cnn|report|status"
NO_RUNS, WITH_RESULTS = ("download",), ("run", "report")

_typed: tuple[str, tuple[str, ...], Path | None, Path | None, str | None] | None = None


def remember(
    config: str, overrides: list[str], runs: Path | None, results: Path | None, device: str | None = None
) -> None:
    """What the user typed after the command; runs, results, device: None where they are the defaults."""
    global _typed
    _typed = config, tuple(overrides), runs, results, device


def pasteable(text: str) -> str:
    """The text with every command it names, such as `ntk solve`, as this user would have to type it."""
    return re.sub(rf"`ntk ({STAGES})((?: --[a-z]+)*)`", _in_full, text)


def _in_full(match: re.Match) -> str:
    command, options = match[1], match[2].split()
    if _typed is None:
        return match[0]
    config, overrides, runs, results, device = _typed
    words = [*options, config, *(word for o in overrides for word in ("--set", o))]
    if runs is not None and command not in NO_RUNS:
        words += ["--runs", str(runs)]
    if results is not None and command in WITH_RESULTS:
        words += ["--results", str(results)]
    if device is not None and command not in NO_RUNS:
        words += ["--device", device]
    return f"`ntk {command} {shlex.join(words)}`"


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(pasteable(self.format(record)), file=sys.stderr)
        sys.stderr.flush()


def show_log() -> None:
    """Print what the pipeline has to say; stdout is kept for results."""
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _Console) for handler in log.handlers):
        log.addHandler(_Console())
