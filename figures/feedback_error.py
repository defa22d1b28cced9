"""How FDFA's feedback finds the mean Jacobian: the start is forgotten as (1 − α)^t, the noise stays at α/(2 − α)."""

import pandas as pd
from matplotlib.figure import Figure

from analysis import feedback, logs
from analysis.rebuilt import closed_forms
from figures import _labels, _scaling, style

EXPERIMENTS = ("feedback",)


@_labels.labelled
def compute(logs_of: dict[str, logs.Logs]) -> pd.DataFrame:
    """Return E‖B − J̄‖² / ‖J̄‖² per hidden block, α and step over seeds, with the closed form."""
    (log,) = logs_of.values()
    return feedback.error(closed_forms.feedback_errors(log), ["block", "estimator", "step"])


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel per hidden block."""
    blocks = sorted(frame["block"].unique())
    labels = style.ordered(frame["estimator"])
    fig, axes = style.panels([style.block_title(b, len(blocks)) for b in blocks], columns=2, height=3, sharey=True)
    for ax, block in zip(axes, blocks, strict=True):
        ax.axhline(1, color=style.GREY, linewidth=0.8, linestyle=":")
        for label in labels:
            rows = frame[(frame["block"] == block) & (frame["estimator"] == label)]
            style.bars(ax, rows, "step", label, linestyle="none", **_face(label))
            _scaling.theory_line(ax, rows, "step")
        style.steps_axis(ax, frame["step"])
        ax.set_xlabel("updates of the feedback, from B = 0")
    style.log_limits(axes, frame)
    axes[0].set_ylabel("E‖B − J̄‖² ÷ ‖J̄‖²")
    handles = [style.handle(label, linestyle="none", label=_name(label), **_face(label)) for label in labels]
    handles.append(_scaling.theory_handle())
    style.legend(fig, handles, f"{style.seeds_text(frame, 'bars')}; weights frozen; dotted: as bad as B = 0")
    return fig


def _name(label: str) -> str:
    return style.look(label).name + ", warm-up" * _warms_up(label)


def _face(label: str) -> dict[str, str]:
    """Feedback that warms up has a hollow marker."""
    return {"markerfacecolor": "white"} if _warms_up(label) else {}


def _warms_up(label: str) -> bool:
    return bool(_labels.meaning(label)[1].get("warmup"))
