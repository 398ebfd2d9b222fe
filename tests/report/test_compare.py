"""Two tables side by side."""

from pathlib import Path

import pytest

from exact_ntk.errors import ConfigError, StoreError
from exact_ntk.files import write_json
from exact_ntk.records import Results
from exact_ntk.report.compare import compare_results, differing, read_results
from tests.made_up import replaced, with_networks


def test_cells_are_matched_by_column_and_depth_with_the_unpaired_error(results: Results):
    other = replaced(results, "CNTK-GAP", accuracy=72.123, standard_error=1.2)
    lines = [line.split("  ") for line in compare_results(results, other).splitlines()]
    row = [cell.strip() for cell in next(line for line in lines if "CNTK-GAP" in line) if cell]
    assert row == ["CNTK-GAP", "3", "70.12 ± 0.50", "72.12 ± 1.20", "+2.00 ± 1.30", "+1.5"]


def test_cells_of_one_table_alone_and_fields_that_differ_are_named(results: Results):
    said = compare_results(results, with_networks(results, (8,), ridge=0.5))
    assert "only in the second: net-w8/3" in said
    assert "only in the first" not in said
    assert "columns.CNTK-GAP.ridge: (absent) | 0.5" in said
    assert "columns.net-w8: (absent) | (present)" in said
    assert "columns.CNTK-V" not in said


def test_a_table_equals_itself_and_order_of_columns_is_no_difference(results: Results):
    assert compare_results(results, results).endswith("the configs are equal")
    turned = {**results.config, "columns": results.config["columns"][::-1]}
    assert differing(results.config, turned) == []
    empty = results.model_copy(update={"records": []})
    assert compare_results(results, empty).startswith("no cell is in both")


def test_a_folder_without_results_is_named(results: Results, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"holds no results\.json"):
        read_results(tmp_path)
    write_json(tmp_path / "results.json", results.json_value())
    assert read_results(tmp_path) == results
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(StoreError, match=r"results\.json"):
        read_results(tmp_path)
