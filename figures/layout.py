"""Texts that fit: words are measured by the renderer, wrapped, and given room, so that none leaves the canvas."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import ceil

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from scipy.optimize import isotonic_regression

MARGIN = 4  # points, that stay free at the left and the right of what spans the figure
GAP = 0.1  # inches between the panels and what stands below them
TRIES = 3  # layouts, after which texts are left as they are: axes that are far too small never fit
TICK_GAP = 2  # points between the labels of neighbouring ticks
_BREAKS = (r"(?<=;) ", r"(?<=,) ", r" (?=÷)", r" (?!%)")  # where a line may end, best first: clause, phrase, ratio, word


class FittedLayout(ConstrainedLayoutEngine):
    """Matplotlib's constrained layout; texts longer than their axes are wrapped, and labels of crowded ticks left out."""

    def execute(self, fig: Figure) -> None:
        """Lay out the figure, and again while texts are wrapped, since they then need other room."""
        super().execute(fig)
        for _ in range(TRIES):
            if not any([_wrap_along(ax) for ax in fig.axes]):  # a list: every axes is looked at
                break
            super().execute(fig)
        for ax in fig.axes:
            _thin(ax.xaxis)
            _thin(ax.yaxis)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size (in inches) whose texts are fitted whenever it is drawn."""
    fig = Figure(figsize=(width, height), layout=FittedLayout())
    FigureCanvasAgg(fig)  # has a renderer at hand, with which texts are measured
    return fig


def legend(fig: Figure, handles: Sequence, note: str, color: str) -> None:
    """Put one legend below everything else, in as many columns as fit, and make the figure higher by its height.

    Args:
        fig: of which the legend is.
        handles: the entries, in order.
        note: what stands above them; it is wrapped to the figure's width.
        color: of the note.
    """
    limit = fig.bbox.width - 2 * MARGIN * fig.dpi / 72
    box = _legend(fig, handles, limit)
    box.set_title(note, prop={"size": 7.5})
    title = box.get_title()
    title.set(color=color, multialignment="center")
    wrap(title, limit)
    fig.set_figheight(fig.get_figheight() + box.get_window_extent().height / fig.dpi + GAP)


def settle(fig: Figure) -> None:
    """Lay out the figure once and for all: files of every kind are then drawn from this one layout."""
    engine = fig.get_layout_engine()
    if engine is not None:
        engine.execute(fig)
        # None, not "none", whose engine does nothing but makes matplotlib draw every file twice
        with matplotlib.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
            fig.set_layout_engine(None)


def banner(fig: Figure, text: str, color: str) -> None:
    """Write a text above everything else, wrapped to the figure's width, and make the figure higher by its height."""
    title = fig.suptitle(text, x=MARGIN / 72 / fig.get_figwidth(), ha="left", fontsize=7, color=color)
    wrap(title, fig.bbox.width - 2 * MARGIN * fig.dpi / 72)
    fig.set_figheight(fig.get_figheight() + title.get_window_extent().height / fig.dpi)


def wrap(text: Text, limit: float) -> bool:
    """Break the lines of a text until none is longer than `limit` pixels, and return whether it changed.

    Lines end where the text says least by being cut there, and are about equally long. A word that is longer by itself stays.
    """

    def length(line: str) -> float:
        text.set_text(line)
        box = text.get_window_extent()
        return box.height if text.get_rotation() == 90 else box.width

    whole = text.get_text()
    rows = [row for line in whole.split("\n") for row in _rows(line, length, limit)]
    text.set_text("\n".join(rows))
    return text.get_text() != whole


def spread(heights: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Return heights that are at least `gap` apart and between `low` and `high`, moved as little as possible.

    Args:
        heights: in ascending order.
        gap: the smallest distance of neighbours.
        low: where the lowest may be.
        high: where the highest may be, if they all fit; otherwise they pass it.
    """
    steps = gap * np.arange(len(heights))
    moved = isotonic_regression(np.asarray(heights) - steps).x
    return moved.clip(low, max(low, high - steps[-1])) + steps


def _legend(fig: Figure, handles: Sequence, limit: float) -> Legend:
    """Return a legend with as few rows as the width allows; a single column has its entries wrapped if need be."""
    for columns in dict.fromkeys(ceil(len(handles) / rows) for rows in range(1, len(handles) + 1)):
        box = fig.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.8)
        excess = box.get_window_extent().width - limit
        if excess <= 0:
            return box
        if columns > 1:
            box.remove()
    widest = max(text.get_window_extent().width for text in box.get_texts())
    for text in box.get_texts():
        wrap(text, widest - excess)
    return box


def _wrap_along(ax: Axes) -> bool:
    """Wrap the titles and the labels of an axes to its width and height, and return whether one changed."""
    titles = [child for child in ax.get_children() if isinstance(child, Text) and child not in ax.texts]
    along = [(text, ax.bbox.width) for text in (*titles, ax.xaxis.label)] + [(ax.yaxis.label, ax.bbox.height)]
    return any([wrap(text, limit) for text, limit in along if text.get_text()])


def _thin(axis: Axis) -> None:
    """Hide the labels of ticks at given values that would touch the label before; the ticks stay, as do their grid lines."""
    if not isinstance(axis.get_major_locator(), FixedLocator):
        return
    low, high = sorted(axis.get_view_interval())
    labels = [label for label in axis.get_majorticklabels() if label.get_visible() and label.get_text()]
    shown = None
    for label in labels:
        x, y = label.get_position()
        if low <= (x if axis.axis_name == "x" else y) <= high:
            box = label.get_window_extent().padded(TICK_GAP * label.get_figure().dpi / 72 / 2)
            if shown is not None and box.overlaps(shown):
                label.set_visible(False)
            else:
                shown = box


def _rows(line: str, length: Callable[[str], float], limit: float) -> list[str]:
    """Return a line cut at the best kind of place that makes all its parts fit."""
    if length(line) <= limit:
        return [line]
    for place in _BREAKS:
        parts = re.split(place, line)
        rows = _filled(parts, length, limit)
        if all(length(row) <= limit for row in rows):
            break
    best, shorter = rows, limit
    while len(rows) == len(best) < len(parts):  # the shortest lines of this number are about equally long
        best, shorter = rows, 0.95 * shorter
        rows = _filled(parts, length, shorter)
    return best


def _filled(parts: Sequence[str], length: Callable[[str], float], limit: float) -> list[str]:
    """Return the parts joined to rows, each as full as `limit` allows."""
    rows = [parts[0]]
    for part in parts[1:]:
        joined = f"{rows[-1]} {part}"
        if length(joined) <= limit:
            rows[-1] = joined
        else:
            rows.append(part)
    return rows
