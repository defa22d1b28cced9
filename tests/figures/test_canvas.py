"""Every text of every figure can be read: it lies inside the canvas, and none covers another."""

import itertools
from unittest import mock

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import crowded_frames
from figures import layout, render, style
from figures.plan import discover

FRAMES = crowded_frames.frames()
FIGURES = [name for name, module in discover().items() if not getattr(module, "TABLE", False)]
SLACK = 0.5  # pixels, by which a box may pass an edge: glyphs are placed on whole pixels
LONG = (  # the caption that once ran off both sides of depth_utility
    "5 seeds (3 for LG-FG-W, LG-FG-A, FA, DKP, DRTP, PEPITA, GrAPE); lines: 95 % t-interval over seeds; "
    "axes are linear to ±5 and logarithmic beyond"
)


def drawn_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """Return every text that drawing the figure writes, with its box in pixels.

    Texts are recorded while they are drawn: an axis also keeps labels of ticks that it does not show.
    """
    seen, draw = [], Text.draw

    def record(text: Text, renderer) -> None:
        if text.get_visible() and text.get_text().strip():
            seen.append((text.get_text(), text.get_window_extent(renderer)))
        draw(text, renderer)

    with mock.patch.object(Text, "draw", record):
        figure.draw_without_rendering()
    return seen


def faults(figure: Figure) -> list[str]:
    """Say which texts leave the canvas, and which two cover each other.

    One rule holds for all texts: titles, labels of axes and ticks, the legend, its heading, and notes within a panel.
    """
    texts, canvas = drawn_texts(figure), figure.bbox.padded(SLACK)
    wrong = [
        f"{text!r} leaves the canvas"
        for text, box in texts
        if not (canvas.x0 <= box.x0 and box.x1 <= canvas.x1 and canvas.y0 <= box.y0 and box.y1 <= canvas.y1)
    ]
    for (text, box), (other, second) in itertools.combinations(texts, 2):
        if box.padded(-SLACK).overlaps(second.padded(-SLACK)):
            wrong.append(f"{text!r} and {other!r} cover each other")
    return wrong


@pytest.mark.parametrize("name", FIGURES)
def test_texts_of_a_crowded_figure_can_be_read(name):
    assert faults(discover()[name].draw(FRAMES[name])) == []


@pytest.mark.parametrize("name", sorted(render.PREVIEWS))
def test_texts_of_a_preview_stay_inside_the_picture(name):
    figure = discover()[name].draw(FRAMES[name])
    render.preview(figure)
    assert [fault for fault in faults(figure) if "leaves the canvas" in fault] == []


def panel(note=LONG, labels=("one", "two")):
    """Return a figure of one panel with a legend, and the panel."""
    with style.context():
        fig, (ax,) = style.panels(["a panel"])
        style.legend(fig, [style.mark(label, "o", style.INK) for label in labels], note)
    return fig, ax


# --- the check can fail ----------------------------------------------------------------------------------------------


def test_a_sound_figure_has_no_fault():
    assert faults(panel()[0]) == []


def test_a_caption_that_runs_off_the_canvas_is_a_fault():
    fig, _ = panel()
    title = fig.legends[0].get_title()
    title.set_text(title.get_text().replace("\n", " "))
    assert faults(fig) == [f"{LONG!r} leaves the canvas"]


def test_two_texts_on_one_another_are_a_fault():
    fig, ax = panel()
    for text in ("this", "that"):
        ax.text(0.5, 0.5, text)
    assert faults(fig) == ["'this' and 'that' cover each other"]


def test_crowded_ticks_are_a_fault():
    fig, ax = panel()
    ax.set_xlim(1, 1000)
    style.ticks(ax, [500, 501])
    fig.set_layout_engine("constrained")  # which leaves them
    assert faults(fig) == ["'500' and '501' cover each other"]


def test_labels_of_ticks_that_are_not_shown_are_no_fault():
    fig, ax = panel()
    style.ticks(ax, [0.5, 500, 501])
    ax.set_xlim(0, 1)
    assert faults(fig) == []


# --- how texts are fitted --------------------------------------------------------------------------------------------


def test_a_caption_is_cut_between_clauses():
    text = panel()[0].legends[0].get_title().get_text()
    assert text.replace("\n", " ") == LONG and text.split("\n")[0].endswith(";")


def test_the_last_line_of_a_caption_is_no_orphan():
    fig, _ = panel("one word after another " * 9 + "end")
    lengths = [len(line) for line in fig.legends[0].get_title().get_text().split("\n")]
    assert len(lengths) > 1 and min(lengths) > 0.7 * max(lengths)


def test_a_caption_that_fits_is_left_as_it_is():
    assert panel("3 seeds")[0].legends[0].get_title().get_text() == "3 seeds"


def test_titles_and_labels_are_no_longer_than_their_axes():
    fig, ax = panel()
    ax.set_title("a title of many words, " * 7, loc="left")
    ax.set_xlabel("what is changed, in units of something else, " * 3)
    ax.set_ylabel("a sum of the squares of norms ÷ another such sum")
    assert faults(fig) == []
    sizes = [text.get_window_extent() for text in (ax.xaxis.label, ax.yaxis.label)]
    assert sizes[0].width <= ax.bbox.width and sizes[1].height <= ax.bbox.height


def test_a_legend_takes_as_few_rows_as_fit():
    for entries, rows in ((4, 1), (14, 3)):
        labels = [f"estimator {i:02}" for i in range(entries)]
        boxes = [box for text, box in drawn_texts(panel(labels=labels)[0]) if text in labels]
        assert len({round(box.y0) for box in boxes}) == rows


def test_an_entry_of_the_legend_that_is_wider_than_the_figure_is_wrapped():
    assert faults(panel(labels=[LONG * 2, "short"])[0]) == []


def test_a_note_above_a_figure_is_wrapped_and_given_room():
    fig, ax = panel()
    with style.context():
        before = fig.get_figheight()
        layout.banner(fig, LONG * 2, style.ALARM)
    assert faults(fig) == [] and fig.get_figheight() > before


def test_one_layout_serves_all_files():
    fig, _ = panel()
    assert set(render._pictures(fig)) == {"png", "pdf"} and fig.get_layout_engine() is None


def test_a_crowded_tick_keeps_its_grid_line_and_loses_its_label():
    fig, ax = panel()
    ax.set_xlim(1, 1000)
    style.ticks(ax, [300, 500, 501, 502, 700])
    texts = [text for text, _ in drawn_texts(fig)]
    assert {"300", "500", "700"} <= set(texts) and not {"501", "502"} & set(texts) and len(ax.get_xticks()) == 5


def test_heights_are_spread_within_their_limits_and_no_further_than_needed():
    heights = layout.spread([0.0, 0.01, 0.02, 0.5, 0.99, 1.0], gap=0.1)
    assert (np.diff(heights) >= 0.1 - 1e-9).all() and heights.min() >= 0 and heights.max() <= 1 + 1e-9
    assert heights == pytest.approx([0, 0.1, 0.2, 0.5, 0.9, 1.0])
    assert layout.spread([0.2, 0.9], gap=0.1) == pytest.approx([0.2, 0.9])
