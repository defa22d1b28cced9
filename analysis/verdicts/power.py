"""How many seeds the verdicts need: a simulation of the very tests that judge, with the spreads of a record.

The components of one setting share FDFA's runs and are therefore dependent: a simulated seed draws all of them together, from
the normal law with the record's means and covariances. Every simulated family goes through the same test and the same
correction as the real one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from analysis import statistics
from analysis.verdicts import protocol
from analysis.verdicts.judgement import family_of, spread_bound
from analysis.verdicts.protocol import KEYS

SEEDS = (3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100)
FAMILIES = 2000


def power(
    values: pd.DataFrame,
    datasets: dict[str, str],
    seeds: Sequence[int] = SEEDS,
    families: int = FAMILIES,
    *,
    bound: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the share of simulated families in which each hypothesis is decided, for numbers of seeds.

    Args:
        values: one row per hypothesis and seed, of the record.
        datasets: setting → name of its data set.
        seeds: numbers of seeds to simulate.
        families: simulated families for each.
        bound: take each spread at its 80 % upper confidence bound in place of the observed one.
        seed: of the simulation.

    Returns:
        `KEYS`, `family`, `seeds`, `decided` (share of families in which the hypothesis is supported, refuted or equivalent),
        `observed` (seeds in the record), `bound`.
    """
    rng, rows = np.random.default_rng(seed), []
    blocks = _blocks(values, bound)
    for family in (protocol.PRIMARY, protocol.MECHANISMS):
        mine = [block for block in blocks if block.family == family]
        keys = [key for block in mine for key in block.keys]
        if not keys:
            continue
        margins = np.array([_margin(key, datasets) for key in keys])
        for n in seeds:
            decided = np.zeros(len(keys))
            for start in range(0, families, 200):  # a few families at a time: they are all in memory
                count = min(200, families - start)
                drawn = np.concatenate([block.draw(rng, count, n) for block in mine], axis=2)
                decided += _decided(drawn, keys, margins).sum(0)
            observed = [seen for block in mine for seen in block.observed]
            for key, share, seen in zip(keys, decided / families, observed, strict=True):
                rows.append([*key, family, n, share, seen, bound])
    return pd.DataFrame(rows, columns=[*KEYS, "family", "seeds", "decided", "observed", "bound"])


def needed(table: pd.DataFrame, power: float) -> pd.DataFrame:
    """Return the smallest number of seeds of `power`'s table at which a hypothesis is decided that often (or infinity)."""
    enough = table[table["decided"] >= power].groupby([*KEYS, "bound"], sort=False)["seeds"].min()
    index = table.groupby([*KEYS, "bound"], sort=False)["observed"].first()
    return enough.reindex(index.index).fillna(np.inf).rename("seeds").reset_index()


def both(
    values: pd.DataFrame, datasets: dict[str, str], seeds: Sequence[int] = SEEDS, families: int = FAMILIES
) -> pd.DataFrame:
    """Return `power` with the spreads as observed and, below it, at their upper bounds."""
    tables = [power(values, datasets, seeds, families, bound=bound) for bound in (False, True)]
    return pd.concat(tables, ignore_index=True)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per hypothesis with the seeds that it needs for a power of 80 and of 95 %, for reading."""
    columns = {}
    for share in (0.8, 0.95):
        for bound, seeds in needed(table, share).groupby("bound", sort=False):
            text = ["–" if n == np.inf else f"{n:.0f}" for n in seeds["seeds"]]
            name = f"{share:.0%}" + (", upper bound" if bound else "")
            columns[name] = pd.Series(text, index=pd.MultiIndex.from_frame(seeds[KEYS]))
    observed = table.groupby(KEYS, sort=False)["observed"].first()
    return pd.DataFrame({"seeds": observed, **columns}).loc[observed.index].reset_index()


class _Block:
    """Hypotheses of one setting, variant and family, which are dependent, with the law that their numbers are drawn from."""

    def __init__(self, family: str, wide: pd.DataFrame, bound: bool):
        self.family, self.keys = family, [tuple(key) for key in wide.columns]
        self.observed = wide.notna().sum().tolist()
        self.mean = wide.mean().to_numpy()
        spread = wide.std(ddof=1).to_numpy() * ([spread_bound(n) for n in self.observed] if bound else 1.0)
        whole = wide.dropna()
        correlation = np.eye(len(self.keys))
        if len(whole) > 2 and len(self.keys) > 1:
            correlation = np.nan_to_num(np.corrcoef(whole.to_numpy(), rowvar=False))
            np.fill_diagonal(correlation, 1.0)
        values, vectors = np.linalg.eigh(correlation)
        self.root = spread[:, None] * (vectors * np.sqrt(np.clip(values, 0, None)))

    def draw(self, rng: np.random.Generator, families: int, seeds: int) -> np.ndarray:
        """Return simulated numbers (families, seeds, hypotheses)."""
        return self.mean + rng.standard_normal((families, seeds, len(self.keys))) @ self.root.T


def _blocks(values: pd.DataFrame, bound: bool) -> list[_Block]:
    values = values.assign(family=[family_of(q, v) for q, v in zip(values["question"], values["variant"], strict=True)])
    found = []
    for (family, _, _), group in values.groupby(["family", "setting", "variant"], sort=False):
        wide = group.pivot(index="seed", columns=KEYS, values="value")
        wide = wide[[c for c in wide if statistics.testable(wide[c].dropna())]]
        if wide.shape[1]:
            found.append(_Block(family, wide, bound))
    return found


def _margin(key: tuple, datasets: dict[str, str]) -> float:
    asks = protocol.BY_KEY[key[0]]
    return protocol.MARGINS.get(datasets.get(key[1], ""), np.nan) if asks.margin else np.nan


def _decided(drawn: np.ndarray, keys: list[tuple], margins: np.ndarray) -> np.ndarray:
    """Return (families, hypotheses): whether the tests decide, with the corrections of `analysis.verdicts.judgement`."""
    n, size = drawn.shape[1], drawn.shape[2]
    mean, se = drawn.mean(1), drawn.std(1, ddof=1) / np.sqrt(n)
    p = 2 * stats.t.sf(np.abs(mean / se), n - 1)
    p_equivalence = np.ones_like(p)
    has = np.isfinite(margins)
    nearest = (margins[has] - np.abs(mean[:, has])) / se[:, has]  # the larger p of the two one-sided tests
    p_equivalence[:, has] = stats.t.sf(nearest, n - 1)
    parity = np.array([key[0] == "Q3 parity" for key in keys])
    p[:, parity] = p_equivalence[:, parity]
    order = np.argsort(p, axis=1)
    ranked = np.take_along_axis(p, order, 1) * (size - np.arange(size))
    holm = np.empty_like(p)
    np.put_along_axis(holm, order, np.minimum(np.maximum.accumulate(ranked, axis=1), 1), 1)
    return (holm < protocol.LEVEL) | ((p_equivalence * size < protocol.LEVEL) & has & ~parity)
