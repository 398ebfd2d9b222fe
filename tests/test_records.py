"""The schema of what is kept: read back as it was written, and refused by file and key where it is not that."""

import json
from pathlib import Path

import pytest

from exact_ntk.errors import StoreError
from exact_ntk.files import write_json
from exact_ntk.records import KernelRecord, NetworkRecord, Results, read_record
from tests.made_up import with_networks


def test_a_record_reads_back_as_it_was_written(results: Results, tmp_path: Path):
    table = with_networks(results, (8,))
    write_json(tmp_path / "results.json", table.json_value())
    found = read_record(tmp_path / "results.json", Results)
    assert found == table
    assert [type(r) for r in found.records] == [KernelRecord, KernelRecord, NetworkRecord]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t["records"][0].pop("accuracy"), r"records\.0\.cntk\.accuracy: Field required"),
        (lambda t: t["records"][0].update(acuracy=1.0), "acuracy: Extra inputs"),
        (lambda t: t.update(name=3), "name: "),
        (lambda t: t["records"][1].update(model="svm"), r"records\.1"),
    ],
)
def test_a_file_that_is_no_such_record_is_named_with_its_key(spoil, words, results: Results, tmp_path: Path):
    tree = results.json_value()
    spoil(tree)
    (tmp_path / "r.json").write_text(json.dumps(tree))
    with pytest.raises(StoreError, match=rf"cannot read .*r\.json \(.*{words}.*delete it"):
        read_record(tmp_path / "r.json", Results)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot read .*r\.json"):
        read_record(tmp_path / "r.json", Results)
    with pytest.raises(StoreError, match=r"cannot read .*gone\.json"):
        read_record(tmp_path / "gone.json", Results)
