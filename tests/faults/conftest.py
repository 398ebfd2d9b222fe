"""A machine that fails on request, and an uninterrupted run on it."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.machine import Machine, write_config


@dataclass(frozen=True)
class Whole:
    """A finished table, and how long it took."""

    folder: Path
    seconds: float


@pytest.fixture(scope="session")
def machine(tmp_path_factory) -> Machine:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the failing machine with")
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="session")
def whole(machine: Machine, tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    write_config(folder)
    machine.run(folder, "--version")  # waits until everything is imported
    start = time.monotonic()
    done = machine.run(folder, "run", "tiny.yaml")
    assert done.process.exitcode == 0, done.said
    return Whole(folder, time.monotonic() - start)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the config, nothing computed."""
    write_config(tmp_path)
    return tmp_path


@pytest.fixture
def done(whole: Whole, tmp_path: Path) -> Path:
    """A copy of the finished table."""
    return Path(shutil.copytree(whole.folder, tmp_path / "done"))
