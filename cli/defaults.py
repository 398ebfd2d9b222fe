"""Where commands keep files unless told otherwise."""

from pathlib import Path

RUNS, RESULTS = Path("runs"), Path("results")
