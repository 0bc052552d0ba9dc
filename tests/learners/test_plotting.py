"""Lines with bands: together where they are few, a panel for each where they are many."""

import pytest

from learners.plotting import MAX_ON_SHARED_AXES, Curve, draw_curves


def draw(folder, count, band=True):
    """The SVG of lines of two points each."""
    edges = ([0.0, 1.0], [2.0, 3.0]) if band else ()
    lines = [Curve(f"method {i}", [0, 1], [1.0, 2.0 + i], *edges) for i in range(count)]
    _, svg = draw_curves(folder / "figure", lines, "tokens", "accuracy")
    return svg.read_text()


@pytest.mark.parametrize("count", [1, MAX_ON_SHARED_AXES, MAX_ON_SHARED_AXES + 1, 9])
def test_every_line_has_its_name_and_its_band_however_many_there_are(tmp_path, count):
    svg = draw(tmp_path, count)
    assert [svg.count(f">method {i}<") for i in range(count)] == [1] * count
    assert svg.count('<g id="FillBetweenPolyCollection') == count


def test_a_line_without_a_band_is_drawn_all_the_same(tmp_path):
    svg = draw(tmp_path, MAX_ON_SHARED_AXES + 1, band=False)
    assert "FillBetweenPolyCollection" not in svg
    assert ">method 6<" in svg


def test_of_many_each_has_axes_of_its_own_with_the_others_behind(tmp_path):
    """Seven panels on a grid of eight, in each six grey lines."""
    svg = draw(tmp_path, MAX_ON_SHARED_AXES + 1)
    assert svg.count('<g id="axes_') == 8
    assert svg.count("stroke: #bfbfbf; stroke-width: 0.7") == 42
    assert draw(tmp_path, MAX_ON_SHARED_AXES).count('<g id="axes_') == 1
