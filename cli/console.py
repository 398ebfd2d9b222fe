"""What the commands say: the pipeline's log on stderr, a line a message, clear of any progress bar."""

import logging
import sys

from tqdm import tqdm

log = logging.getLogger("ntk")


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
        sys.stderr.flush()


def show_log() -> None:
    """Print what the pipeline has to say; stdout is kept for results."""
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _Console) for handler in log.handlers):
        log.addHandler(_Console())
