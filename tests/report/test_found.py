"""What was found, in two sentences."""

from exact_ntk.records import Results
from exact_ntk.report.found import found
from tests.made_up import with_networks


def test_the_best_cell_comes_first_and_then_the_paper(results: Results):
    first, second = found(results)
    assert first == (
        "Of 3 cells (1 without a result) CNTK-GAP at depth 3 classifies most of its test images right, 70.12 ± 0.50 % "
        "of 100 test images, trained on 2000."
    )
    assert second == ("The 1 cell with a published value differs from it by -0.35 points, 0.7 standard errors of ours.")


def test_without_published_values_readouts_are_compared_then_networks_then_depths(results: Results):
    columns = [c.model_copy(update={"paper": []}) for c in results.columns]
    plain = results.model_copy(update={"columns": columns})
    assert found(plain)[1] == (
        "On the same images CNTK-GAP is ahead of CNTK-V by 5.20 ± 2.13 points at depth 3 (2.4 standard errors), the "
        "surest of 1 paired comparison, 1 with that sign."
    )
    alone = plain.model_copy(update={"paired": []})
    assert "nothing to compare it with" in found(alone)[1]
    assert (
        "net-w8 at depth 3 is behind CNTK-GAP, the kernel it tends to, by 12.12" in found(with_networks(alone, (8,)))[1]
    )
    doubtful = [plain.paired[0].model_copy(update={"standard_error": 2.7})]
    assert "is not surely ahead of CNTK-V by 5.20" in found(plain.model_copy(update={"paired": doubtful}))[1]
    deep = alone.records[0].model_copy(update={"depth": 4, "accuracy": 72.0})
    assert (
        "From depth 3 to 4 the accuracy of CNTK-GAP changes by +1.88 points"
        in found(alone.model_copy(update={"records": [*alone.records, deep]}))[1]
    )


def test_a_table_without_a_finished_cell_says_so(results: Results):
    assert found(results.model_copy(update={"records": []}))[0] == "No cell of made is finished."
