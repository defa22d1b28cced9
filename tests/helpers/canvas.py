"""What is wrong with the texts of a figure, judged by the boxes that the renderer gives them."""

import itertools
from unittest import mock

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SLACK = 0.5  # pixels, by which a box may pass an edge: glyphs are placed on whole pixels


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
