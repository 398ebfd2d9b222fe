"""What need be said but once a process."""

import logging
from functools import cache

log = logging.getLogger("ntk")


@cache
def warn_once(line: str) -> None:
    """Log a warning, unless the same one has been logged."""
    log.warning("%s", line)
