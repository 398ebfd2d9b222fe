"""Right and wrong by class, counted by hand."""

from dataclasses import replace

import numpy as np

from exact_ntk.records import Results
from exact_ntk.report.classes import by_class
from tests.made_up import collected, with_networks


def test_each_column_is_counted_at_its_best_depth(results: Results):
    better = results.records[0].model_copy(update={"depth": 4, "accuracy": 90.0})
    table = results.model_copy(update={"records": [*results.records, better]})
    found = by_class(table.columns, collected(table))
    assert [(c.column, c.depth) for c in found] == [("CNTK-GAP", 4), ("CNTK-V", 3)]
    assert [c.column for c in by_class(table.columns[::-1], collected(table), most=1)] == ["CNTK-V"]
    np.testing.assert_array_equal(found[0].confusion, [[1, 0, 0], [0, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(found[0].accuracy, [100, 100, 50])


def test_draws_are_added_up_and_a_class_without_images_has_no_accuracy(results: Results):
    table = replace(collected(results), classes=("a", "b", "c", "none"))
    table.arrays["CNTK-V", 3] *= 2
    found = by_class(results.columns, table)[1]
    assert found.confusion.sum() == 8
    np.testing.assert_array_equal(found.accuracy, [100, 100, 50, np.nan])


def test_networks_keep_no_outputs_but_what_they_get_right(results: Results):
    nets = with_networks(results, (8,))
    found = by_class(nets.columns, collected(nets))[-1]
    assert found.confusion is None
    np.testing.assert_array_equal(found.right, [1, 1, 1])
