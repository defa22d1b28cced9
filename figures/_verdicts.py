"""How verdicts are said: a word with a symbol, an effect with its interval, and paragraphs written from the numbers."""

from __future__ import annotations

import re

import pandas as pd

from analysis.verdicts import judgement, matrix, protocol
from figures import style

# So that colour alone never says a verdict.
SYMBOLS = {"supported": "✓", "refuted": "✗", "equivalent": "≈", "inconclusive": "?"}
OPEN = "○"  # not judged

MEANINGS = {
    "supported": "the claim is shown",
    "refuted": "the opposite is shown",
    "equivalent": "a difference within the margin is shown",
    "inconclusive": "the seeds do not decide",
}
TITLES = {
    "Q1 variance": "Q1: lower variance",
    "Q1 error": "Q1: lower error",
    "Q2 epoch": "Q2: faster per epoch",
    "Q2 operation": "Q2: faster per operation",
    "Q3 accuracy": "Q3: more accurate",
    "Q3 parity": "Q3: level with BP",
}
EFFECTS = {
    "Q1 variance": "the variance of {method} is {effect} times FDFA's",
    "Q1 error": "the squared error of {method} is {effect} times FDFA's",
    "Q2 epoch": "FDFA's train loss is {effect} times {method}'s",
    "Q2 operation": "FDFA's train loss is {effect} times {method}'s",
    "Q3 accuracy": "FDFA less {method} is {effect} points",
    "Q3 parity": "FDFA less {method} is {effect} points",
}
UNITS = (
    "Effects: in Q1 the competitor's value ÷ FDFA's (above 1 favours FDFA), in Q2 FDFA's train loss ÷ the competitor's (below "
    "1 favours FDFA), in Q3 points of test accuracy, FDFA's less the competitor's."
)


def whole(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of a matrix with empty texts in place of NaN, which a CSV makes of them."""
    texts = ["dataset", "network", "component", *matrix.DECIDED, "reason"]
    return cells.assign(**{name: cells[name].astype(object).where(cells[name].notna(), "") for name in texts})


def named(component: str) -> str:
    """Name the method that FDFA is compared with, and all others that a text names, as labels between backticks or bare."""
    first, *rest = component.split(", ")
    return ", ".join([style.look(first).name, *(re.sub("`([^`]+)`", _labelled, style.method(part)) for part in rest)])


def _labelled(match: re.Match) -> str:
    return style.look(match[1]).name


def effect(row) -> str:
    """Return an estimate with its interval: a ratio, or points where the question is about accuracy; – where there is none."""
    if row.estimate != row.estimate:
        return "–"
    shown = _points if row.question.startswith("Q3") else digits
    text = shown(row.estimate)
    if row.low == row.low:
        text += f" [{shown(row.low)}, {shown(row.high)}]"
    return text.replace("-", "−")


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def digits(value: float) -> str:
    """Return three digits, zeros at the end among them."""
    return re.sub(r"\.(?=$|e)", "", f"{value:#.3g}").replace("e+0", "e").replace("e-0", "e-")


def p_value(p: float) -> str:
    """Return a p-value as it is read, with its relation: "= 0.012", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def needed(seeds: float) -> str:
    """Return how many seeds would decide, or – where the question does not arise."""
    if seeds != seeds:
        return "–"
    return f"> {judgement.MOST_SEEDS}" if seeds == float("inf") else f"{seeds:.0f}"


def place(row) -> str:
    """Name a setting for people; one of which no file tells has the name of its experiment."""
    if not row.dataset:
        return f"`{row.setting}`"
    when = {"width": ", at initialisation", "trajectory": ", along training"}.get(row.role, "")
    return f"{style.dataset(row.dataset)}, {row.network.replace('_', ' ')}{when}"


def cell(row) -> str:
    """Return the lines of a cell of the matrix: verdict, weakest effect, seeds."""
    lines = [marked(row.verdict)]
    if row.interval == "own":
        lines.append(f"earlier: {effect(row)}, {named(row.component)} ({row.seeds})")
    elif row.component:
        lines.append(f"{effect(row)}, {named(row.component)}")
    if matrix.is_judged(row.verdict):
        lines.append(f"{row.seeds} of {row.seeds_planned} seeds")
    return "\n".join(lines)


def lead(cells: pd.DataFrame) -> str:
    """Say what the cells of a matrix show, and what is not judged."""
    judged = cells["verdict"].map(matrix.is_judged)
    if not judged.any():
        said = "No question is judged yet: of no cell are all planned seeds recorded. "
    else:
        said = (
            "A cell has the verdict over all competitors, the weakest effect with its simultaneous 95 % interval, and the "
            "seeds. "
        )
        said += "" if judged.all() else "A cell whose seeds are not all recorded is not judged. "
    if cells["interval"].eq("own").any():
        said += (
            'Recorded runs that predate the protocol, or that it does not ask for, carry no verdict. After "earlier" stands '
            "the weakest effect that they show over the competitors that were run, with its own 95 % t-interval over seeds "
            "(their number in brackets). "
        )
    return said + UNITS


def paragraphs(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """Return a title and a paragraph per question, written from the cells of a matrix."""
    return [
        (TITLES[question.key], _paragraph(question, cells[cells["question"] == question.key]))
        for question in protocol.QUESTIONS
        if question.key in set(cells["question"])
    ]


def reasons(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """Return, per setting, why its recorded runs carry no verdict, or that none is recorded."""
    silent = cells[cells["reason"] != ""].drop_duplicates("setting")
    return list(silent[["setting", "reason"]].itertuples(index=False, name=None))


def _paragraph(question: protocol.Question, cells: pd.DataFrame) -> str:
    planned = cells[cells["verdict"] != matrix.NOT_PLANNED]
    parts = [question.asks]
    for verdict in matrix.DECIDED:
        rows = planned[planned["verdict"] == verdict]
        if len(rows):
            details = "; ".join(_judged(row) for row in rows.itertuples())
            parts.append(f"{verdict.capitalize()} on {len(rows)} of {len(planned)} settings: {details}.")
    waiting = planned[~planned["verdict"].map(matrix.is_judged)]
    if len(waiting):
        parts.append(_not_judged(waiting, len(planned)))
    earlier = cells[cells["interval"] == "own"]
    if len(earlier):
        parts.append(_before(question, earlier))
    return " ".join(parts)


def _judged(row) -> str:
    said = f"{place(row)} ({_effect_said(row)}, {row.seeds} seeds"
    if row.verdict == "refuted" and row.components > 1:
        said += f"; refuted by {', '.join(named(c) for c in row.refuted.split('; '))}"
    if row.verdict == "inconclusive":
        said += f"; {needed(row.seeds_needed)} seeds would decide"
    return said + ")"


def _not_judged(waiting: pd.DataFrame, planned: int) -> str:
    """Say where nothing is judged yet, for want of which seeds."""
    each = waiting.groupby("verdict", sort=False)
    counts = ", ".join(f"{len(rows)} with {verdict}" if len(each) > 1 else verdict for verdict, rows in each)
    if len(waiting) == planned:
        said = f"Not judged yet on any of {planned} settings ({counts})"
    else:
        said = f"Not judged yet: {'; '.join(place(row) for row in waiting.itertuples())} ({counts})"
    silent = waiting[(waiting["interval"] == "none") & (waiting["reason"] != "")]
    reasons = "; ".join(silent["reason"].unique())
    return said + (f"; {reasons}." if len(silent) == len(waiting) else ".")


def _before(question: protocol.Question, earlier: pd.DataFrame) -> str:
    """Say from where to where the weakest effects of earlier runs range, the least favourable first."""
    rows = list(earlier.sort_values("estimate", ascending=question.direction == "greater", kind="stable").itertuples())
    first, last = (f"on {place(row)} ({_effect_said(row)})" for row in (rows[0], rows[-1]))
    what = "the difference" if question.key == "Q3 parity" else "the weakest effect"
    if len(rows) == 1:
        return f"In the earlier runs, {what} is that {first}."
    return f"In the earlier runs, {what} is least favourable {first} and most favourable {last}."


def _effect_said(row) -> str:
    method = named(row.component).replace(", hidden block", " in hidden block").replace(", weights of", " with the weights of")
    return EFFECTS[row.question].format(method=method, effect=effect(row))


def marked(verdict: str) -> str:
    """Return a verdict with its symbol."""
    return f"{SYMBOLS.get(verdict, OPEN)} {verdict}"


def kind(text: str) -> str:
    """Return the verdict that a marked text says, "open" where it says that nothing is judged, "" for any other text."""
    symbol, space, rest = text.partition(" ")
    if space and symbol == OPEN:
        return "open"
    return rest if space and SYMBOLS.get(rest) == symbol else ""
