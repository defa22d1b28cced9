"""The picture of a verification: what was measured against what theory says, and whether its errors are normal.

Not a figure of the logs, hence the underscore: `fdfa verify` draws it from its own table.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from figures import style


@style.styled
def draw(frame: pd.DataFrame) -> Figure:
    """Draw variances and their parts on the identity line, and the z of all single numbers against normal quantiles.

    Args:
        frame: rows of `verification.run`.
    """
    # what theory says to be constant and is so to rounding has no sampling error to show
    random = frame[frame["se"] > 1e-6 * frame["predicted"].abs()]
    methods = style.ordered(random["estimator"])
    fig, (left, right) = style.panels(["variances and their parts", "standardised differences"], columns=2, height=3.4)
    positive = random[random["quantity"].str.contains("variance|part") & (random["measured"] > 0) & (random["predicted"] > 0)]
    for method in methods:
        rows, how = positive[positive["estimator"] == method], style.look(method)
        left.vlines(rows["predicted"], rows["low"], rows["high"], color=how.color, linewidth=0.6, alpha=0.5)
        dots = {"color": how.color, "marker": how.marker, "linestyle": "none", "markersize": 3, "alpha": 0.7}
        left.plot(rows["predicted"], rows["measured"], **dots)
    span = [positive["predicted"].min() / 2, positive["predicted"].max() * 2]
    left.plot(span, span, color=style.INK, linewidth=0.8, zorder=1)
    left.set(xscale="log", yscale="log", xlim=span, ylim=span, xlabel="predicted", ylabel="measured, 99 % interval")

    # the largest of a family of components is not normal: its p-value enters the correction, its z has no place here
    single = random[np.isfinite(random["z"]) & ~random["quantity"].str.startswith("component")]
    single = single.sort_values("z")
    quantiles = stats.norm.ppf((np.arange(len(single)) + 0.5) / len(single))
    for method in methods:
        chosen, how = (single["estimator"] == method).to_numpy(), style.look(method)
        dots = {"color": how.color, "marker": how.marker, "linestyle": "none", "markersize": 3, "alpha": 0.7}
        right.plot(quantiles[chosen], single["z"][chosen], **dots)
    reach = 1.1 * max(np.abs(quantiles).max(), single["z"].abs().max())
    right.plot([-reach, reach], [-reach, reach], color=style.INK, linewidth=0.8, zorder=1)
    right.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="standard normal quantile", ylabel="z, sorted")
    handles = [style.mark(style.look(m).name, style.look(m).marker, style.look(m).color) for m in methods]
    failed = int((frame["verdict"] != "pass").sum())
    note = f"{len(frame)} comparisons in {frame['case'].nunique()} cases; {failed} rejected, family-wise level 1 % (Holm)"
    style.legend(fig, handles, note)
    return fig
