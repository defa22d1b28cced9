"""From logs to one number per seed: what the verdicts are tested on.

Everything within a seed is dependent, so a seed counts once. Equal seeds share initialisation and batches, so that differences
and ratios are taken within a seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy import stats

from analysis import accuracy, convergence, effort, logs, options, select
from analysis.verdicts import protocol
from fdfa_core.errors import InvalidInput

COLUMNS = ("question", "setting", "component", "variant", "seed", "value")
ROLES = ("width", "trajectory", "convergence")
NETWORK = ["dataset", "architecture", "width", "depth"]
UNBIASED = ("fg-w", "fg-a")  # for the gradient of the network's loss, whose norm the probes hold
# Each block of these follows a loss of its own, whose gradient they estimate without bias, given their readouts. Probes hold
# the mean squared distance to that gradient, which is then error and variance alike. The variance over replicas would count
# the random beginnings of their readouts, too.
OWN_OBJECTIVE = ("lg-fg-w", "lg-fg-a")
Rows = pd.DataFrame


def values(logs_of: Mapping[str, logs.Logs]) -> Rows:
    """Return one row per hypothesis and seed: `COLUMNS`.

    Args:
        logs_of: logs by role, "width", "trajectory" and "convergence", each pooled over its experiments; a role may be missing.

    Raises:
        InvalidInput: two runs of one seed answer the same hypothesis, so that it is unclear which one counts.
    """
    parts: list[Rows] = []
    probed = [logs_of[role] for role in ("width", "trajectory") if role in logs_of and len(logs_of[role].probes)]
    rates = rates_on_trial(logs_of["convergence"].runs) if probed and "convergence" in logs_of else {}
    for log in probed:
        parts += _of_estimates(log, rates)
    if "convergence" in logs_of:
        parts += _of_training(logs_of["convergence"])
    parts = [part[list(COLUMNS)] for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def variant(frame: Rows) -> pd.Series:
    """Return the FDFA that a row is of: "momentum", "adam", "alpha = 1", or "" where it is of another method."""
    beside = options.column(frame, "feedback_rule").eq(protocol.BESIDE)
    kind = np.where(beside, protocol.BESIDE, np.where(options.alpha(frame) == 1, "alpha = 1", protocol.ON_TRIAL))
    return pd.Series(np.where(frame["method"] == "fdfa", kind, ""), index=frame.index)


def rates_on_trial(runs: Rows) -> dict[tuple[str, str], float]:
    """Return the feedback rate α of the FDFA on trial by data set and architecture: that of the FDFA that trains there.

    Raises:
        InvalidInput: FDFA trains with several rates on one data set and architecture, in one experiment or in two, so that it
            is unclear which one is on trial.
    """
    mine = runs[variant(runs) == protocol.ON_TRIAL]
    rates = mine.assign(alpha=options.alpha(mine)).groupby(["dataset", "architecture"], sort=False)
    for _, same in rates:
        if same["alpha"].nunique() > 1:
            where = ", ".join(sorted(same["experiment"].unique()))
            accepted = "one rate of the momentum rule in the experiments that verdicts rest on: the one chosen by tuning"
            raise InvalidInput(f"feedback_lr of fdfa in {where}", sorted(same["alpha"].unique()), accepted)
    return rates["alpha"].first().to_dict()


# --- estimates: variance and error -----------------------------------------------------------------------------------


def _of_estimates(log: logs.Logs, rates: Mapping[tuple[str, str], float]) -> list[Rows]:
    """Return the values of Q1 and of the mechanisms from one role's probes."""
    rows = select.hidden_blocks(log.probes)
    rows = rows[(rows["target_norm"] > 0) & np.isfinite(rows["variance"]) & (rows["variance"] > 0)].copy()
    rows["variant"] = variant(rows)
    rows["signal"] = _expected_norm2(rows)
    rows["noise"] = np.log(rows["variance"] / rows["signal"].where(rows["signal"] > 0))
    rows["nsr"] = np.log(rows["variance"] / rows["reference_norm"] ** 2)
    rows["squared_error"] = np.log(rows["error_mean"].where(rows["error_mean"] > 0) / rows["target_norm"] ** 2)
    own = rows["method"].isin(OWN_OBJECTIVE)
    to_own = np.log(rows["own_error"].where(rows["own_error"] > 0) / rows["own_norm"] ** 2)
    rows["squared_error"], rows["noise"] = (rows[name].where(~own, to_own) for name in ("squared_error", "noise"))
    networks = zip(rows["dataset"], rows["architecture"], strict=True)
    on_trial = options.alpha(rows) == np.array([rates.get(network, np.nan) for network in networks])
    trial = rows[(rows["variant"] == protocol.ON_TRIAL) & on_trial]
    fdfas = {protocol.ON_TRIAL: trial, protocol.BESIDE: rows[rows["variant"] == protocol.BESIDE]}
    one = rows[(rows["variant"] == "alpha = 1")]
    forward = {name: _unbiased(rows[rows["method"] == name]) for name in protocol.FORWARD}
    parts = []
    for kind, fdfa in fdfas.items():
        for name, competitor in forward.items():
            for question, column in (("Q1 variance", "noise"), ("Q1 error", "squared_error")):
                parts.append(_mean(competitor, fdfa, column).assign(question=question, component=name, variant=kind))
    about = {"variant": protocol.ON_TRIAL}
    parts.append(_mean(forward["fg-w"], forward["fg-a"], "nsr").assign(question="M1", component="fg-w, fg-a", **about))
    parts.append(_slope(forward["fg-w"], forward["fg-a"], "nsr").assign(question="M2", component="fg-w, fg-a", **about))
    parts.append(_slope(forward["fg-a"], trial, "nsr").assign(question="M2", component="fg-a, fdfa", **about))
    parts.append(_mean(one, trial, "nsr").assign(question="M3", component="fdfa", **about))
    parts.append(_mean(one, forward["fg-a"], "nsr").assign(question="M4", component="fdfa, fg-a", **about))
    return [_named_blocks(part) for part in parts if len(part)]


def _expected_norm2(rows: Rows) -> pd.Series:
    """Return ‖E g‖²: the target's for an unbiased estimator, otherwise ‖ḡ‖² less the share of the draws' own noise."""
    corrected = rows["mean_norm2"] - rows["variance"] / rows["draws"]
    return corrected.where(~rows["method"].isin(UNBIASED), rows["target_norm"] ** 2)


def _unbiased(rows: Rows) -> Rows:
    """Return the rows of one site and slope: after the activation, and with the slope that is unbiased where both were run."""
    for option, preferred in (("site", "post"), ("slope", "batch")):
        chosen = options.column(rows, option).eq(preferred)
        rows = rows[chosen] if chosen.any() else rows
    return rows


def _paired(above: Rows, below: Rows, column: str) -> Rows:
    """Return `value`, the difference of two estimators' logarithms on one network and step.

    With frozen weights (one probe per run) steps do not matter; along a trajectory they do.
    """
    both = pd.concat([above, below])
    if above.empty or below.empty:
        return pd.DataFrame(columns=["experiment", "trained_with", "block", "seed", "width", "value"])
    frozen = bool((both.groupby("run")["step"].nunique() == 1).all())
    on = ["experiment", "trained_with", "block", "seed", "width"] + ([] if frozen else ["step"])
    a, b = (_one_each(rows, on).set_index(on)[column] for rows in (above, below))
    return (a - b).rename("value").dropna().reset_index()


def _mean(above: Rows, below: Rows, column: str) -> Rows:
    pairs = _paired(above, below, column)
    by = ["experiment", "trained_with", "block", "seed"]
    return pairs.groupby(by, sort=False)["value"].mean().reset_index() if len(pairs) else pairs


def _slope(above: Rows, below: Rows, column: str) -> Rows:
    """Return the slope of the difference against ln width, one per seed and block."""
    pairs, rows = _paired(above, below, column), []
    for key, group in pairs.groupby(["experiment", "trained_with", "block", "seed"], sort=False):
        if group["width"].nunique() > 1:
            rows.append([*key, stats.linregress(np.log(group["width"].astype(float)), group["value"]).slope])
    return pd.DataFrame(rows, columns=["experiment", "trained_with", "block", "seed", "value"])


def _named_blocks(part: Rows) -> Rows:
    """Turn experiment, path and block into `setting` and the end of `component`."""
    several = part["trained_with"].nunique() > 1
    path = (", weights of `" + part["trained_with"] + "`") if several else ""
    block = ", hidden block " + (part["block"] + 1).astype(str)
    return part.assign(setting=part["experiment"], component=part["component"] + block + path)


# --- training: speed and accuracy ------------------------------------------------------------------------------------


def _of_training(log: logs.Logs) -> list[Rows]:
    """Return the values of Q2 and Q3, a comparison of FDFA with every other method in each experiment."""
    done = log.metrics[log.metrics["status"] == "finished"]
    if done.empty:
        return []
    compared = _compared(log.runs)
    pairs = _pairs(compared)
    operations = effort.per_step(log.runs[log.runs["run"].isin(compared["run"])])
    curves = _curves(done[done["run"].isin(compared["run"])], operations)
    epochs = np.log(convergence.heights(done, "train_loss").set_index("run")["height"])
    final = accuracy.final(done).set_index("run")["test_accuracy"]
    local, bp = pairs[pairs["component"] != "bp"], pairs[pairs["component"] == "bp"]
    return [
        _difference(bp, final).assign(question="Q3 parity"),
        _difference(local, epochs).assign(question="Q2 epoch"),
        _along_operations(local, curves).assign(question="Q2 operation"),
        _difference(local, final).assign(question="Q3 accuracy"),
    ]


def diverged(logs_of: Mapping[str, logs.Logs]) -> Rows:
    """Return what has no number since one of its two runs diverged: hypothesis (`protocol.KEYS`) and `seed`."""
    if "convergence" not in logs_of:
        return pd.DataFrame(columns=[*protocol.KEYS, "seed"])
    log = logs_of["convergence"]
    lost, pairs = log.metrics.loc[log.metrics["status"] == "diverged", "run"], _pairs(_compared(log.runs))
    pairs = pairs[pairs["run_fdfa"].isin(lost) | pairs["run_other"].isin(lost)]
    asked = [["Q3 parity"] if method == "bp" else protocol.TRAINING for method in pairs["component"]]
    return pairs.assign(question=asked).explode("question")[[*protocol.KEYS, "seed"]].reset_index(drop=True)


def _compared(runs: Rows) -> Rows:
    """Return the runs of the two FDFAs and of all that they are compared with."""
    runs = runs[["experiment", *NETWORK, "seed", "run", "method"]].assign(variant=variant(runs))
    return runs[runs["variant"].isin([protocol.ON_TRIAL, protocol.BESIDE]) | runs["method"].isin(("bp", *protocol.LOCAL))]


def _pairs(runs: Rows) -> Rows:
    """Return the pairs of an FDFA's run and another method's, of one experiment, network and seed.

    Returns:
        Columns `setting`, `component` (the other method), `variant` (of FDFA), `seed`, `run_fdfa`, `run_other`.
    """
    on = ["experiment", *NETWORK, "seed"]
    fdfa, others = (runs[chosen] for chosen in (runs["variant"] != "", runs["variant"] == ""))
    pairs = fdfa[[*on, "variant", "run"]].merge(others[[*on, "method", "run"]], on=on, suffixes=("_fdfa", "_other"))
    pairs = _one_each(pairs, [*on, "variant", "method"]).rename(columns={"experiment": "setting", "method": "component"})
    return pairs[["setting", "component", "variant", "seed", "run_fdfa", "run_other"]]


def _difference(pairs: Rows, value: pd.Series) -> Rows:
    """Return FDFA's number less the other's, for the pairs whose runs both have one (`value`, by run)."""
    return pairs.assign(value=pairs["run_fdfa"].map(value) - pairs["run_other"].map(value)).dropna(subset=["value"])


def _curves(metrics: Rows, per_step: Mapping[str, float]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the operations spent and ln train loss of every run, in the order of its steps."""
    ordered = metrics.sort_values("step", kind="stable")
    return {
        run: (per_step[run] * curve["step"].to_numpy(float), np.log(curve["train_loss"].to_numpy(float)))
        for run, curve in ordered.groupby("run", sort=False)
    }


def _along_operations(pairs: Rows, of: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Rows:
    """Return the difference of mean ln train loss along the operations that both runs of a pair have spent."""
    both = pairs[pairs["run_fdfa"].isin(of) & pairs["run_other"].isin(of)]
    differences = []
    for pair in both[["run_fdfa", "run_other"]].itertuples(index=False):
        curves = [of[run] for run in pair]
        end = min(x[-1] for x, _ in curves)
        mine, theirs = (convergence.mean_height(x, y, x[0], end) for x, y in curves)
        differences.append(mine - theirs)
    return both.assign(value=differences).dropna(subset=["value"])


def _one_each(rows: Rows, on: Iterable[str]) -> Rows:
    """Return the rows, if no two of them are equal in `on`: a verdict compares methods in one setting."""
    on = list(on)
    several = rows[rows.duplicated(on)]
    if len(several):
        which = ", ".join(f"{key} {several.iloc[0][key]}" for key in on)
        accepted = "one run for each estimator, network and seed: an experiment that sweeps nothing else"
        raise InvalidInput("evidence", f"several runs of {which}", accepted)
    return rows
