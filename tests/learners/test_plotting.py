"""Lines with bands: together where they are few, a panel for each where they are many."""

import pytest

from learners.plotting import FEW, Line, drawn_lines


def drawn(folder, count, band=True):
    """The SVG of lines of two points each."""
    edges = ([0.0, 1.0], [2.0, 3.0]) if band else ()
    lines = [Line(f"method {i}", [0, 1], [1.0, 2.0 + i], *edges) for i in range(count)]
    _, svg = drawn_lines(folder / "figure", lines, "tokens", "accuracy")
    return svg.read_text()


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 9])
def test_every_line_has_its_name_and_its_band_however_many_there_are(tmp_path, count):
    svg = drawn(tmp_path, count)
    assert [svg.count(f">method {i}<") for i in range(count)] == [1] * count
    assert svg.count('<g id="FillBetweenPolyCollection') == count


def test_a_line_without_a_band_is_drawn_all_the_same(tmp_path):
    svg = drawn(tmp_path, FEW + 1, band=False)
    assert "FillBetweenPolyCollection" not in svg
    assert ">method 6<" in svg


def test_of_many_each_has_axes_of_its_own_with_the_others_behind(tmp_path):
    """Seven panels on a grid of eight, in each six grey lines."""
    svg = drawn(tmp_path, FEW + 1)
    assert svg.count('<g id="axes_') == 8
    assert svg.count("stroke: #bfbfbf; stroke-width: 0.7") == 42
    assert drawn(tmp_path, FEW).count('<g id="axes_') == 1
