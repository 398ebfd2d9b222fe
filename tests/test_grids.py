"""Tables of text, and many names in few words."""

from exact_ntk.grids import aligned, named


def test_of_many_names_the_first_and_how_many_others_there_are():
    assert named([]) == ""
    assert named(list("ABCD")) == "A, B, C, D"
    assert named(list("ABCDE")) == "A, B, C and 2 other columns"
    assert named(list("ABCDEF"), "cells") == "A, B, C and 3 other cells"


def test_columns_are_as_wide_as_their_longest_cell():
    assert aligned(["a", "long"], [["10", "b"]]) == " a  long\n--  ----\n10     b"
