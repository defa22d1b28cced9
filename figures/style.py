"""One look for all figures: who has which colour, marker and line, and the few parts that pictures share.

Colours are those of Okabe & Ito (2008) and Tol (2021), told apart with the common colour blindnesses; with this many methods
no palette is enough, so that marker and line style differ too and a print in grey can be read.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log10
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from figures import _labels, layout

NOISE = " (data noise)"
WIDTH = 7.2  # inches: a text column of two
INK, GREY, PALE, ALARM = "#222222", "#767676", "#dddddd", "#c00000"

SETTINGS = {
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.5,
    "patch.facecolor": "#1f77b4",  # as it is, but by its code: "C0" is looked up anew for every frame of a picture
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,
}

# method → name in print, colour, marker, line; the order is that of legends and tables
_METHODS = {
    "bp": ("BP", "#000000", "o", "-"),
    "fg-w": ("FG-W", "#D55E00", "v", "--"),
    "fg-a": ("FG-A", "#E69F00", "^", "-."),
    "lg-fg-w": ("LG-FG-W", "#882255", "<", (0, (5, 1, 1, 1, 1, 1))),
    "lg-fg-a": ("LG-FG-A", "#AA4499", ">", (0, (3, 1, 1, 1))),
    "fa": ("FA", "#999933", "p", (0, (6, 2))),
    "dfa": ("DFA", "#CC79A7", "s", (0, (4, 1.5))),
    "dkp": ("DKP", "#009E73", "P", (0, (7, 1.5, 1.5, 1.5))),
    "drtp": ("DRTP", "#B8A530", "d", (0, (2, 1))),
    "pepita": ("PEPITA", "#661100", "X", (0, (1, 1))),
    "fdfa": ("FDFA", "#0072B2", "H", "-"),
    "grape": ("GrAPE", "#332288", "*", (0, (8, 1))),
    "cosine-dfa": ("Cosine-DFA", "#44AA99", "h", (0, (8, 1, 1, 1))),
    "fg-a-averaged": ("FG-A averaged", "#7A5200", "8", (0, (4, 1, 1, 1))),
    "fdfa-averaged": ("FDFA averaged", "#00406b", "D", (0, (4, 1, 1, 1, 1, 1))),
    "guess": ("Guess", "#6A51A3", "D", (0, (3, 1, 1, 1, 1, 1))),
    "zo": ("ZO", "#8C2D04", "1", (0, (5, 2, 1, 2))),
    "frozen": ("Frozen", "#888888", "x", ":"),
}
DATASETS = {
    "digits": "Digits",
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar-10": "CIFAR-10",
    "cifar-100": "CIFAR-100",
    "tiny-imagenet": "Tiny ImageNet",
}
_SPARE = ("#6A51A3", "#B15928", "#1B7837", "#8C2D04", "#01665E", "#7A0177")  # for methods that are registered elsewhere
_ALPHA_SHADES = matplotlib.colors.LinearSegmentedColormap.from_list("alpha", ["#56B4E9", "#0072B2", "#00406b", "#001a33"])


@dataclass(frozen=True)
class Look:
    """How one estimator is drawn, everywhere."""

    name: str
    color: str
    marker: str
    linestyle: str | tuple
    hollow: bool = False

    def line(self, **more) -> dict:
        """Keyword arguments for `Axes.plot`."""
        face = "white" if self.hollow else self.color
        return {
            "color": self.color,
            "marker": self.marker,
            "linestyle": self.linestyle,
            "markerfacecolor": face if self.marker != "x" else self.color,
            "label": self.name,
        } | more


def look(label: str, method: str | None = None, options: Mapping[str, Any] | None = None) -> Look:
    """Return the look of an estimator.

    FDFA is shaded by α (dark: slow feedback); the site "post" and other options give hollow markers. A method unknown here
    has a colour that follows from its name, so a new estimator needs no entry.

    Args:
        label: of the estimator, in the frame that is being drawn.
        method, options: what the label stands for, where no frame is being drawn; options are those that were given.
    """
    if method is None:
        method, options = _labels.meaning(label)
    return _look(method, json.dumps(dict(options or {}), sort_keys=True))


def dataset(name: str) -> str:
    """Return the name of a data set in print; one that is unknown here keeps its own."""
    return DATASETS.get(name, name)


@functools.cache
def _look(method: str, given: str) -> Look:
    options = json.loads(given)
    digest = zlib.crc32(method.encode())
    fallback = (method, _SPARE[digest % len(_SPARE)], "hd8H"[digest % 4], (0, (3, 1.5)))
    name, color, marker, linestyle = _METHODS.get(method, fallback)
    rest = {key: value for key, value in options.items() if key != "warmup"}  # how the feedback starts, not what it is
    rate = rest.pop("feedback_lr", None)
    if method == "fdfa" and rate is not None and rest.get("feedback_rule") != "adam":
        depth = min(max(-log10(float(rate)), 0), 3)
        color = matplotlib.colors.to_hex(_ALPHA_SHADES(depth / 3))
        marker = "oDh8"[int(depth + 1e-9)]
        name += f" α={float(rate):g}"
    elif rate is not None:
        rest["feedback_lr"] = f"{float(rate):g}"
    if rest.get("slope") == "batch":
        marker = "D"  # hollow, as any further option is, and so told from the site "post" with each sample's own slope
    if rest.get("feedback_rule") == "adam":
        linestyle = (0, (5, 1))  # so that it is told from the rule of the paper where markers are small
    site = rest.pop("site", None)
    if site == "post":
        linestyle = (0, (1, 1))
    shown = [*([site] if site else []), *(_option_text(key, value) for key, value in rest.items())]
    name += f" ({', '.join(shown)})" if shown else ""
    return Look(name, color, marker, linestyle, hollow=bool(rest) or site == "post")


def _option_text(key: str, value: Any) -> str:
    """Say an option in a legend."""
    known = {
        "joint": "one block at a time",
        "per_sample": "a direction per sample",
        "combine": f"{value}",
        "perturbation": f"{value}",
        "tangents": f"{value} directions",
        "slope": f"slope of the {value}",
        "checkpoint": "checkpointed",
        "feedback_rule": f"{str(value).capitalize()} rule",
        "feedback_lr": f"rate {value}",
    }
    return known.get(key, f"{key.replace('_', ' ')} {value}")


def ordered(labels: Iterable[str]) -> list[str]:
    """Return distinct labels in the order of legends: BP, forward gradients, feedback methods, FDFA from α = 1 down."""
    known = list(_METHODS)

    def rank(label: str):
        method, options = _labels.meaning(label)
        rate = float(options.get("feedback_lr", 0) or 0)
        return (known.index(method) if method in known else len(known), method, len(options), -rate, label)

    return sorted(set(labels), key=rank)


def styled(draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
    """Make a draw function use this style, whatever the user's matplotlibrc says, and know what the frame's labels stand for.

    Global settings are afterwards as they were.
    """

    @functools.wraps(draw)
    def wrapper(frame: pd.DataFrame) -> Figure:
        with context():
            return understood(frame)

    understood = _labels.understood(draw)
    return wrapper


def context():
    """Return a context in which matplotlib has this style alone."""
    default = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in {"backend", "interactive"}}
    return matplotlib.rc_context(default | SETTINGS)


def panels(titles: Sequence[str], columns: int = 3, height: float = 2.6, **subplots) -> tuple[Figure, list[Axes]]:
    """Return a figure with one titled panel each, in rows of at most `columns`, each row `height` inches high."""
    columns = min(columns, len(titles))
    rows = ceil(len(titles) / columns)
    fig = layout.new_figure(WIDTH, rows * height)
    axes = list(fig.subplots(rows, columns, squeeze=False, **subplots).flat)
    for ax in axes[len(titles) :]:
        ax.remove()
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, loc="left")
    return fig, axes[: len(titles)]


def legend(fig: Figure, handles: Sequence, note: str) -> None:
    """Put one legend for the whole figure below its panels, headed by what the figure shows (seeds, kind of interval).

    A figure whose frame holds FG-A with a slope that is biased, since batch normalisation couples the samples, says so here.
    """
    if biased := ordered(_labels.with_biased_slopes()):
        names = ", ".join(look(label).name for label in biased)
        note += f"; {names}: each sample's own slope, biased under batch normalisation except in the last block"
    layout.legend(fig, handles, note, GREY)


def handle(label: str, /, **more) -> Line2D:
    """Return a legend entry for an estimator."""
    return Line2D([], [], **look(label).line(**more))


def band(ax: Axes, rows: pd.DataFrame, x: str, label: str, shade: float = 0.16, **line) -> None:
    """Draw a curve with its interval as a band (where there is one) of opacity `shade`."""
    rows, how = rows.sort_values(x), look(label)
    ax.plot(rows[x], rows["estimate"], **how.line(**line))
    if (rows["interval"] != "none").any():
        ax.fill_between(rows[x], rows["low"], rows["high"], color=how.color, alpha=shade, linewidth=0)


def marks(curve: pd.DataFrame) -> int | float:
    """Return which points of a curve to mark: all, or, where these would hide the line, one at every 12 % of the picture."""
    return 1 if len(curve) <= 12 else 0.12


def bars(ax: Axes, rows: pd.DataFrame, x: str, label: str, **line) -> None:
    """Draw a curve with its intervals as error bars."""
    rows, how = rows.sort_values(x), look(label)
    ax.plot(rows[x], rows["estimate"], **how.line(**line))
    ax.vlines(rows[x], rows["low"], rows["high"], color=how.color, linewidth=1)


def point_labels(ax: Axes, items: Sequence[tuple[float, float, str]], size: float = 6.5) -> None:
    """Write texts beside points, each on the side where it covers least: other texts, points, the edge of the picture.

    Args:
        ax: axes whose limits and place in the figure are final.
        items: (x, y, text).
        size: of the font, in points.
    """
    single = [line.get_xydata() for line in ax.get_lines() if len(line.get_xydata()) == 1]
    points = ax.transData.transform(np.concatenate(single))
    edge, taken = ax.get_window_extent(), []
    for x, y, text in items:
        best = None
        for side in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            align = {"ha": ("center", "left", "right")[side[0]], "va": ("center", "bottom", "top")[side[1]]}
            place = (5 * side[0], 4 * side[1])
            note = ax.annotate(text, (x, y), xytext=place, textcoords="offset points", fontsize=size, **align)
            box = note.get_window_extent()
            outside = edge.x0 > box.x0 or box.x1 > edge.x1 or edge.y0 > box.y0 or box.y1 > edge.y1
            cost = box.count_overlaps(taken) + box.padded(2).count_contains(points) + outside
            if best is None or cost < best[0]:
                if best:
                    best[1].remove()
                best = (cost, note, box)
            else:
                note.remove()
            if cost == 0:
                break
        taken.append(best[2])


def end_labels(ax: Axes, items: Sequence[tuple[float, str, str]], head: str = "", size: float = 7) -> None:
    """Write texts right of the axes at heights `y` of a logarithmic axis, moved apart where they would overlap.

    Args:
        ax: axes whose y limits are final.
        items: (y, text, colour).
        head: what the texts are, written above them.
        size: of the font, in points.
    """
    low, high = (log10(v) for v in ax.get_ylim())
    items = sorted(items, key=lambda item: item[0])
    heights = np.array([(log10(y) - low) / (high - low) for y, _, _ in items])
    gap = size * 1.25 / 72 / (ax.get_position().height * ax.figure.get_figheight())
    heights = layout.spread(heights, gap, high=1 - gap / 2)
    ax.text(1.02, 1.0, head, transform=ax.transAxes, color=GREY, fontsize=size, va="bottom")
    for height, (_, text, color) in zip(heights, items, strict=True):
        ax.text(1.02, height, text, transform=ax.transAxes, color=color, fontsize=size, va="center", clip_on=False)


def ticks(ax: Axes, values: Iterable[float]) -> None:
    """Tick a logarithmic x axis at the measured values alone."""
    ax.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())


def plain_log(axis) -> None:
    """Label a logarithmic axis 0.1, 0.2, 0.5, 1, … instead of with powers of ten, if it spans few decades."""
    low, high = axis.get_view_interval()
    if high / low < 1000:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def accuracy_axis(ax: Axes, accuracies: pd.Series, which: str = "y") -> None:
    """Make y (or x) an axis of accuracies on the logit scale, on which 0.9 and 0.99 are as far apart as 0.5 and 0.92."""
    axis = getattr(ax, f"{which}axis")
    getattr(ax, f"set_{which}scale")("logit", nonpositive="clip")
    odds = (accuracies / (1 - accuracies)).clip(0.02, 500)
    low, high = odds.min() / 2, odds.max() * 2
    ax.set(**{f"{which}lim": (low / (1 + low), high / (1 + high))})
    axis.set_major_locator(FixedLocator([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995]))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def steps_axis(ax: Axes, steps: Iterable[float]) -> None:
    """Make x a logarithmic axis of training steps, with room for step 0 where it was measured."""
    first, last = min(steps), max(steps)
    powers = [10**k for k in range(8) if max(first, 1) / 1.3 <= 10**k <= 1.3 * last]
    if first == 0:
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(-0.3, max(last, 1) * 1.3)
        powers = [0, *powers]
    else:
        ax.set_xscale("log")
    ticks(ax, powers)
    ax.set_xlabel("training step")


def log_limits(axes: Sequence[Axes], frame: pd.DataFrame, decades: float = 1.0) -> None:
    """Make y logarithmic with room for all estimates; a very wide interval (two seeds, say) runs off the panel."""
    shown = frame.loc[frame["estimate"] > 0]
    low = max(shown["estimate"].min() / 10**decades, shown.loc[shown["low"] > 0, "low"].min() / 1.5)
    high = min(shown["estimate"].max() * 10**decades, shown["high"].max() * 1.5)
    for ax in axes:
        ax.set(yscale="log", ylim=(low, high))


def block_title(block: int, blocks: int, trained_with: str | None = None) -> str:
    """Name a hidden block, counted from one at the input, and whose weights it has."""
    weights = f", weights of {look(trained_with).name}" if trained_with else ""
    return f"hidden block {block + 1} of {blocks}{weights}"


def seeds_text(frame: pd.DataFrame, what: str = "band") -> str:
    """Say how many seeds a frame has (and which estimators have fewer) and what its intervals are."""
    most = int(frame["seeds"].max())
    count = f"{most} seed{'s' if most > 1 else ''}"
    fewer = frame[frame["seeds"] < most]
    if len(fewer):
        column = "trained_with" if "estimator" not in frame else "estimator"
        names = ordered(fewer[column]) if column in frame else []
        who = ", ".join(look(label).name for label in names) if 0 < len(names) <= 8 else "some points"
        low, high = int(fewer["seeds"].min()), int(fewer["seeds"].max())
        count += f" ({low if low == high else f'{low} to {high}'} for {who})"
    kinds = set(frame["interval"])
    if kinds == {"none"}:
        return f"{count}: no interval"
    if kinds == {"binomial"}:
        return f"{count}; {what}: 95 % binomial interval in which a seed counts once"
    if "seeds" in kinds:
        return f"{count}; {what}: 95 % t-interval over seeds"
    return f"{count}; {what}: 95 % interval over draws (other seeds not covered)"


def method(name: str) -> str:
    """Return the name of one of the project's methods in print, and any other text as it is."""
    return _METHODS[name][0] if name in _METHODS else name


def patch(label: str, color: str, alpha: float = 1.0, **more) -> Patch:
    """Return a legend entry for an area."""
    return Patch(label=label, color=color, alpha=alpha, linewidth=0, **more)


def mark(label: str, marker: str, color: str, linestyle: str | tuple = "none", hollow: bool = False) -> Line2D:
    """Return a legend entry for a marker."""
    face = "white" if hollow else color
    return Line2D([], [], label=label, marker=marker, color=color, linestyle=linestyle, markerfacecolor=face)
