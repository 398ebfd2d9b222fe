"""What a disk lacks, said before anything is computed."""

from pathlib import Path

import pytest

from exact_ntk import disk
from exact_ntk.errors import NtkError


def test_a_full_disk_is_said_before_the_start(tmp_path: Path):
    """Also of a folder that is still to be made."""
    with pytest.raises(NtkError, match=r"tiles need .* MB, and the disk has"):
        disk.check_space(tmp_path / "new" / "run", 10**18, 1)
    bytes_free, _ = disk.free_space(tmp_path / "new")
    disk.check_space(tmp_path / "new", bytes_free // 2, 1)


def test_a_disk_without_inodes_is_said_before_the_start(tmp_path: Path, monkeypatch):
    class Disk:
        f_bavail, f_frsize, f_files, f_favail = 10**9, 4096, 1000, 20

    monkeypatch.setattr(disk.os, "statvfs", lambda folder: Disk)
    disk.check_space(tmp_path, 100, 20)
    with pytest.raises(NtkError, match="need 21 files and the disk has 20 inodes free"):
        disk.check_space(tmp_path, 100, 21)
