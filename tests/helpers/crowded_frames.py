"""What each figure is drawn from, at its most crowded: every estimator, long names, unequal numbers of seeds, wide ranges.

The values are no results. They are chosen so that texts need as much room as the experiments could ever make them need.
"""

import itertools

import numpy as np
import pandas as pd

from analysis import coupling, options
from fdfa_core.estimators.registry import label

MEANINGS: options.Meanings = {}  # what the labels with options stand for


def named(method: str, **given) -> str:
    """Return the label of an estimator, and note what it stands for."""
    text = label(method, given)
    MEANINGS[text] = (method, given)
    return text


METHODS = [
    "bp",
    "fg-w",
    "fg-a",
    "lg-fg-w",
    "lg-fg-a",
    "fa",
    "dfa",
    "dkp",
    "drtp",
    "pepita",
    named("fdfa", feedback_lr=0.001),
    named("fdfa", feedback_lr=0.0001, feedback_rule="adam"),
    "grape",
    "frozen",
]
NOISY = [
    "bp",
    "fg-w",
    named("fg-w", per_sample=True),
    named("fg-a", site="pre"),
    named("fg-a", site="post"),
    named("fdfa", feedback_lr=1.0, warmup=True),
    named("fdfa", feedback_lr=0.1, joint=False, warmup=True),
    named("fdfa", feedback_lr=0.01, joint=False, warmup=True),
]
SETTINGS = [
    (data, network, epochs)
    for data in ("cifar-10", "fashion-mnist", "tiny-imagenet-200")
    for network, epochs in (("convolutional", 3), ("fully_connected", 100))
]
MACHINE = "2 cores of Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, torch 2.13.0, 1 thread, 64 GiB of memory"


def crossed(**values) -> pd.DataFrame:
    """Return a row for every combination of the values."""
    return pd.DataFrame(itertools.product(*values.values()), columns=list(values))


def measured(frame: pd.DataFrame, low: float = 1e-5, high: float = 1e7, fewer: str = "") -> pd.DataFrame:
    """Add estimates from `low` to `high` with their intervals over 5 seeds, 3 for most values of the column `fewer`."""
    estimate = np.geomspace(low, high, len(frame))
    seeds = frame[fewer].ne(frame[fewer].iloc[0]).map({True: 3, False: 5}) if fewer else 5
    return frame.assign(estimate=estimate, low=estimate / 1.5, high=estimate * 1.5, seeds=seeds, interval="seeds")


def trained(**more) -> pd.DataFrame:
    """Return curves of loss and accuracy for every method."""
    frame = measured(crossed(quantity=["train_loss", "test_accuracy"], trained_with=METHODS, **more), 1e-6, 10, "trained_with")
    accuracy = frame["quantity"] == "test_accuracy"
    frame.loc[accuracy, ["estimate", "low", "high"]] = np.linspace(0.05, 0.995, accuracy.sum())[:, None] * [1, 0.98, 1.002]
    return frame


def grids() -> pd.DataFrame:
    """Return accuracies of trials and of finals in five grids, one of which has two networks."""
    datasets = ["mnist", "cifar-10", "mnist", "cifar-10", "mnist", "mnist"]
    networks = ["fully_connected", "fully_connected", "convolutional", "convolutional", "fully_connected", "fully_connected"]
    panels = pd.DataFrame({"dataset": datasets, "architecture": networks, "optimizer": ["adam"] * 4 + ["sgd"] * 2})
    panels["layers"] = ["", "", "", "", "2 × 400", "8 × 400"]
    rates = crossed(trained_with=METHODS, learning_rate=np.geomspace(1e-5, 0.1, 18))
    finals = crossed(trained_with=METHODS, learning_rate=[1e-3, 3e-3, 1e-2])
    rows = pd.concat([rates.assign(round=1, se=0.0, seeds=1), finals.assign(round=2, se=0.004, seeds=3)], ignore_index=True)
    chosen = (rows["round"] == 2) & (rows["learning_rate"] == 3e-3)
    return panels.merge(rows.assign(accuracy=np.linspace(0.08, 0.995, len(rows)), chosen=chosen), how="cross")


def sloped(x: str, values: list[int]) -> pd.DataFrame:
    """Return noise against `x`, with all curves ending in nearly the same point, and slopes."""
    frame = measured(crossed(block=[0, 1], estimator=NOISY, **{x: values}), fewer="estimator")
    ends = frame[x] == max(values)
    frame.loc[ends, ["estimate", "low", "high"]] = [1e-5, 0.9e-5, 1.1e-5]
    slopes = {"slope": -1.57, "slope_low": -11.64, "slope_high": -1.51, "slope_interval": "seeds"}
    return frame.assign(theory=frame["estimate"], **slopes)


def momentum_rates() -> pd.DataFrame:
    """Return what `fair_momentum` shows: three panels, three methods, measured and by closed form."""
    methods, rates = ["fg-a", "fg-a-averaged", "fdfa"], [0.01, 0.03, 0.1, 0.3, 1.0]
    frame = crossed(panel=["step", "mean", "moving"], method=methods, rate=rates)
    frame = frame.assign(kind="measured", quantity="variance", feedback_lr=0.001)
    return pd.concat([measured(frame), measured(frame.assign(kind="theory")).assign(interval="none")], ignore_index=True)


def phases() -> pd.DataFrame:
    """Return what `phase_diagram` shows: a field and points in four panels."""
    grid = {"batch_size": [1.0, 1e3, 1e6], "feedback_lr": [1e-3, 1e-1, 1.0], "criterion": ["variance", "mse"]}
    parts = []
    for joint, tangents in ((True, 1), (False, 32)):
        field = measured(crossed(**grid), 1e-2, 1e2).assign(kind="grid", joint=joint, tangents=tangents)
        parts += [field, field[field["batch_size"] == 1.0].assign(kind="measured")]
    return pd.concat(parts, ignore_index=True)


def quotients() -> pd.DataFrame:
    """Return what `zeroth_order` shows."""
    grid = {"activation": ["relu", "tanh"], "size": [42_310, 199_210], "precision": ["float32", "float64"]}
    frame = measured(crossed(**grid, epsilon=np.logspace(-6, 0, 13)), 1e-12, 10)
    return frame.assign(leading=frame["estimate"])


def timed(column: str) -> pd.DataFrame:
    """Return what a figure of cost shows but for its own columns."""
    sizes = {"width": [100, 200, 1600], "depth": [1, 2, 8], "batch_size": [16, 256, 1024], "outputs": [10, 1000]}
    sizes |= {"tokens": [16, 64, 256], "layers": [1, 2, 8]}
    draws = ["fg-a: gradients", "fg-a: scalars", "fdfa: replicas"]
    rows = [(quantity, size, label) for quantity in sizes for size in sizes[quantity] for label in METHODS[:7]]
    rows += [("draws", size, label) for size in (1, 16, 256) for label in draws]
    return measured(pd.DataFrame(rows, columns=[column, "size", "estimator"]), 0.1, 5).assign(machine=MACHINE)


def aligned() -> pd.DataFrame:
    """Return what `cost_vs_alignment` shows: a point for every estimator and many variants."""
    variants = [
        named("fg-w", tangents=8),
        named("fg-a", combine="projection", tangents=8),
        named("fg-a", perturbation="rademacher"),
    ]
    frame = measured(pd.DataFrame({"estimator": METHODS + variants}), 1e-3, 0.9)
    time = np.geomspace(0.5, 100, len(frame))
    error = {
        "relative_error": np.geomspace(1e5, 1e-3, len(frame)),
        "method": frame["estimator"].map(lambda text: MEANINGS.get(text, (text,))[0]),
    }
    times = {"milliseconds": time, "milliseconds_low": time / 1.2, "milliseconds_high": time * 1.2}
    return frame.assign(**error, **times, draws=32, steps=100, machine=MACHINE)


def profiles() -> pd.DataFrame:
    """Return what `depth_profile` shows: many blocks, wide ranges, and accuracies close to one another."""
    ranges = {"cosine": (0.01, 1), "growth": (1e-3, 1e5), "amplification": (1e-2, 1e4), "norm": (1e-12, 10), "share": (0.01, 1)}
    parts = [
        measured(crossed(trained_with=METHODS, block=range(12)), *bounds, "trained_with").assign(quantity=quantity)
        for quantity, bounds in ranges.items()
    ]
    ends = measured(crossed(trained_with=METHODS, block=[-1]), 0.985, 0.995, "trained_with").assign(quantity="accuracy")
    frame = pd.concat([*parts, ends.assign(low=0.98, high=0.996)], ignore_index=True)
    return frame.assign(stable=frame["block"] < 6)


def compared() -> pd.DataFrame:
    """Return what `theory_vs_measured` shows."""
    frame = measured(pd.DataFrame({"estimator": NOISY * 5}), fewer="estimator")
    found = frame.assign(theory=frame["estimate"], measured=frame["estimate"], held=11620, of=11660)
    found[["estimate", "low", "high"]] = [1.0, 0.6, 1.6]
    return found.assign(method=found["estimator"].map(lambda text: MEANINGS.get(text, (text,))[0]))


def frames() -> dict[str, pd.DataFrame]:
    """Return a frame for every figure, by its name."""
    parts = ["measured", "expected", "averaging", "lag", "start", "sampling"]
    rates, steps = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001], [0, 1, 10, 100, 1000, 30_000]
    angles = crossed(quantity=["angle", "angle_reference", "share"], block=[0, 1, 2], estimator=METHODS, step=steps)
    angles = measured(angles, 1, 120, "estimator").assign(chance=1.0, stable=lambda f: f["step"] < 50)
    drift = [
        crossed(against=["alpha"], block=[0, 1], quantity=parts, alpha=rates, step=[20_000]),
        crossed(against=["step"], block=[0, 1], quantity=parts, alpha=[0.01], step=[3, 15, 60, 20_000]),
    ]
    errors = ["variance", "bias2", "mse"]
    split = measured(crossed(trained_with=["bp", METHODS[11]], estimator=NOISY, block=[0, 1], quantity=errors))
    alphas = measured(crossed(block=[0, 1, 2], quantity=[*errors, "law"], alpha=rates))
    cosine = crossed(method=["fg-w", "fg-a"], tangents=[1, 16], combine=["mean", "projection"], dimension=[16, 1000, 1_000_000])
    cross = measured(crossed(depth=[2, 4, 12], block=range(12), joint=[True, False])).query("block < depth")
    joint = cross["joint"].map({True: named("fdfa", feedback_lr=1.0), False: named("fdfa", feedback_lr=1.0, joint=False)})
    feedback = [named("fdfa", feedback_lr=rate) for rate in rates] + [named("fdfa", feedback_lr=0.001, warmup=True)]
    error = measured(crossed(block=[0, 1], estimator=feedback, step=steps), fewer="estimator")
    shown = ["first", "mean", "first_reference", "mean_reference", "share", "accuracy"]
    depth = crossed(quantity=shown, trained_with=METHODS, depth=[2, 3, 5, 8])
    depth = measured(depth, 0.01, 0.9, "trained_with").assign(stable=lambda f: f["depth"] < 4)
    utility = measured(pd.DataFrame([(*key, label) for key in SETTINGS for label in METHODS]), 1e-3, 0.2)
    utility.columns = ["dataset", "architecture", "epochs", "trained_with", *utility.columns[4:]]
    utility["optimizer"] = "sgd"  # which has the longer title
    crowded = {
        "alignment_angles": pd.concat([angles, angles[:3].assign(quantity="vanished")]),
        "alignment_vs_depth": depth,
        "bias_decomposition": measured(pd.concat(drift), 1e-6, 10).assign(detected=lambda f: f["alpha"] < 0.5),
        "bias_variance": split.assign(detected=split["block"] == 0),
        "convergence": trained(epoch=[0.0, 1.0, 2.0]).assign(kind="mean", seed=-1),
        "convergence_cost": trained(epoch=[1.0, 2.0, 3.0]).assign(
            flops=lambda f: np.geomspace(7e7, 1.2e13, len(f)),
            seconds=lambda f: np.geomspace(0.02, 400, len(f)),
            memory=lambda f: np.linspace(2e5, 9e8, len(f)),
        ),
        "depth_profile": profiles(),
        "descent_frequency": measured(crossed(block=[0, 1, 2, -1], estimator=METHODS, window=[0, 1, 2]), 0.01, 0.9).assign(
            first=lambda f: f["window"] * 1024, last=lambda f: f["window"] * 4096, draws=16, stable=False, interval="binomial"
        ),
        "equal_cost": trained(kind=["curve", "end"], step=[1, 2]).assign(
            flops=lambda f: f["step"] * 6e12, spent=lambda f: np.linspace(0.13, 1, len(f))
        ),
        "cosine_vs_dimension": measured(cosine, 1e-4, 1).assign(
            theory=lambda f: f["estimate"], ratio=1, ratio_low=0.7, ratio_high=1.3
        ),
        "cost_scaling": timed("quantity"),
        "cost_vs_alignment": aligned(),
        "cross_talk": cross.assign(estimator=joint, theory=cross["estimate"]),
        "depth_utility": utility.assign(
            estimate=np.linspace(-0.9, 0.3, len(utility)),
            low=-0.99,
            high=0.4,
            seeds=np.where(utility["trained_with"].isin(METHODS[:6]), 3, 5),
        ),
        "fair_momentum": momentum_rates(),
        "feedback_error": error.assign(theory=error["estimate"]),
        "momentum_tradeoff": pd.concat(
            [
                alphas.assign(detected=alphas["alpha"] < 0.5, rule="momentum"),
                alphas[alphas["alpha"] == 1].assign(detected=True, rule="adam"),
            ]
        ),
        "phase_diagram": phases(),
        "rate_robustness": grids(),
        "theory_vs_measured": compared(),
        "variance_during_training": measured(
            crossed(trained_with=["bp", METHODS[11]], block=[0, 1, 2], estimator=NOISY, step=steps), fewer="estimator"
        ),
        "variance_vs_batch": sloped("batch_size", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
        "variance_vs_depth": sloped("depth", [1, 2, 3, 4, 5]).assign(place=lambda f: f["block"].map({0: "first", 1: "last"})),
        "variance_vs_width": sloped("width", [16, 50, 100, 200, 400, 800, 1600, 3200]),
        "zeroth_order": quotients(),
    }
    seeds = crossed(
        setting=["mnist_fc", "fashion_fc", "cifar_cnn", "mnist_fc_100"],
        component=[m for m in METHODS if not m.startswith(("fdfa", "frozen"))],
        variant=["momentum", "adam"],
        seed=range(10),
    )
    seeds = seeds.assign(value=np.resize([0.95, -0.3, 0.001, 0.02], len(seeds)), margin=0.01)
    crowded["seeds"] = seeds
    biased = {"fg-a", label("fg-a", {"site": "pre"}), label("fg-a", {"site": "post"})}
    return {name: coupling.marked(options.described(frame, MEANINGS), biased) for name, frame in crowded.items()}
