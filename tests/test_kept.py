"""A kept file is whole or not used: killed between any two of its writes, flipped, cut short, or without a digest."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk import files, kept
from exact_ntk.errors import StoreError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def keep(path: Path, content: bytes) -> None:
    kept.keep(path, lambda file: file.write(content))


def test_sha256sum_reads_what_stands_beside_a_file(tmp_path: Path):
    for content in (b"one", b"two"):
        keep(tmp_path / "a.npz", content)
        check = ["sha256sum", "--check", "--strict", "a.npz.sha256"]
        assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 0


@given(content=st.binary(min_size=1, max_size=64), at=st.integers(0), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(tmp_path_factory, content: bytes, at: int, bit: int):
    path = tmp_path_factory.mktemp("kept") / "a.json"
    keep(path, content)
    flipped = bytearray(content)
    flipped[at % len(content)] ^= 1 << bit
    path.write_bytes(flipped)
    assert kept.damaged(path.parent) == [path]
    with pytest.raises(StoreError, match=r"cannot read .*a\.json .*a\.json\.sha256.*`ntk run`"):
        kept.require_whole(path)


def test_a_file_without_a_digest_or_that_is_gone_is_not_used(tmp_path: Path):
    path = tmp_path / "a.pt"
    with pytest.raises(StoreError, match="No such file"):
        kept.require_whole(path)
    path.write_bytes(b"from elsewhere")
    assert kept.damaged(tmp_path) == [path]


@pytest.mark.parametrize("writes", range(4))
def test_a_kill_between_any_two_writes_leaves_a_whole_file(writes: int, tmp_path: Path, monkeypatch):
    """And so does one after it, at the next try."""
    path, replace = tmp_path / "a.pt", Path.replace
    keep(path, b"before")

    class Killed(BaseException):
        pass

    left = [writes]

    def cut_short(self, target):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return replace(self, target)

    for _ in range(2):
        left[0] = writes
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", cut_short)
            try:
                keep(path, b"after")
            except Killed:
                assert writes < 3
            else:
                assert writes == 3
        kept.require_whole(path)
        assert path.read_bytes() == (b"before" if writes < 2 else b"after")


def test_what_is_set_aside_counts_as_missing_and_what_is_removed_leaves_nothing(tmp_path: Path):
    record, arrays, good = (tmp_path / name for name in ("a.json", "a.npz", "b.json"))
    for path in (record, arrays, good):
        keep(path, b"content")
    arrays.write_bytes(b"contend")
    kept.set_damaged_aside(good)
    kept.set_damaged_aside(record, arrays)
    assert names(tmp_path) == ["a.json", "a.json.sha256", "a.npz.damaged", "b.json", "b.json.sha256"]
    for path in (record, good, tmp_path / "never.json"):
        kept.remove(path)
    assert names(tmp_path) == ["a.npz.damaged"]


def test_partials_of_a_digest_go_with_those_of_its_file(tmp_path: Path):
    (tmp_path / ".a.json.sha256.x1.partial").write_text("half")
    files.remove_partials(tmp_path / "a.json")
    assert names(tmp_path) == []
