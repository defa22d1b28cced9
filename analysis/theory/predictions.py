r"""Exact mean and variance of every gradient component, by closed form.

Everything is a mean over a finite population of per-sample moments (see `population`), for batches of N samples drawn with
replacement and independent perturbations. Variances come apart into parts with different causes:

| part | cause | shrinks as |
| --- | --- | --- |
| `data` | which samples are in the batch | 1/N |
| `perturbation` | the random directions of this step (forward gradients) | 1/(N K), or 1/K where the batch shares a direction |
| `feedback` | the random feedback, seen through the mean error (FDFA) | α/(2−α) · 1/N |
| `cross` | the random feedback times the batch's own deviation from the mean error | α/(2−α) · 1/N² |

The formulas are derived in docs/theory.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral

import torch
from torch import Tensor

from analysis.theory.feedback import law_of
from analysis.theory.feedback_form import feedback_forms
from analysis.theory.fourth_moment import Noise, noise
from analysis.theory.local_maps import UnitMap
from analysis.theory.population import Chunk, Population, gather
from analysis.theory.prediction import Prediction, Values, assemble, each, spread
from fdfa_core.errors import InvalidInput, UnknownName, Unsupported
from fdfa_core.estimators.activity_perturbation import first_linear, require_allocatable, require_maskable, row_space
from fdfa_core.estimators.direct_feedback import of_rank
from fdfa_core.estimators.options import Allocation, Count, Positive, Readout, Slope
from fdfa_core.estimators.tangents import best_counts
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.perturbations import LowRank, make_law
from fdfa_core.signatures import checked

EXACT = Noise(1.0, 0.0, 0.0, 0.0)
SAMPLINGS = ("fresh_batches", "given_batch")


def predict(
    name: str,
    net: BlockNetwork,
    x: Tensor,
    y: Tensor,
    batch_size: int,
    loss: str | Callable = "cross_entropy",
    *,
    sampling: str = "fresh_batches",
    **options,
) -> Prediction:
    """Return the exact mean and variance of an estimator's gradient, per component.

    Args:
        name: "bp", "frozen", "fg-w", "zo" (to leading order in ε), "fg-a", "guess", "dfa", "dkp", "drtp" or "fdfa".
        net: the network as it stands; normalisation in evaluation mode.
        x, y: the finite population, M samples; M may be smaller than the batch.
        batch_size: N, samples drawn with replacement.
        loss: as for `make_estimator`.
        sampling: "fresh_batches" (each draw has its own batch) or "given_batch" (the batch is (x, y) itself: only the
            perturbations, and FDFA's feedback, are random).
        **options: the estimator's own, with its defaults. `dfa`, `dkp` and `drtp` need `feedback`, one tensor (O, *site) per
            hidden block. `fdfa` also takes `feedback` (moments given that state), `steps` (t steps after B = 0; the default
            None is the long run), or `feedback_law`, made by the function of that name on another population.

    Returns:
        A `Prediction`.

    Raises:
        Unsupported: no exact form exists for this network, law or option; the message says what to do.
        UnknownName, InvalidInput: unknown estimator or option, or an impossible value.

    Examples:
        >>> import torch
        >>> from fdfa_core import fully_connected
        >>> net = fully_connected([4, 6, 3], activation="tanh", seed=0)
        >>> x, y = torch.linspace(-1, 1, 32).view(8, 4), torch.arange(8) % 3
        >>> from analysis.theory import predict
        >>> prediction = predict("fg-a", net, x, y, batch_size=8)
        >>> f"{prediction.total('variance'):.4f}", f"{prediction.total('bias'):.4f}"
        ('0.6872', '0.0000')
    """
    if name not in FORMULAS:
        raise UnknownName("estimator", name, FORMULAS, "Others have no closed form here: measure them.")
    formula, defaults = FORMULAS[name]
    for option in options:
        if option not in defaults:
            raise UnknownName(f"option of {name}", option, defaults or ["none: it has no options"])
    if sampling not in SAMPLINGS:
        raise InvalidInput("sampling", sampling, '"fresh_batches" or "given_batch"')
    given = sampling == "given_batch"
    if not isinstance(batch_size, Integral) or batch_size < 1 or (given and batch_size != len(x)):
        accepted = f"{len(x)}, the size of the given batch" if given else "a positive integer"
        raise InvalidInput("batch_size", batch_size, accepted)
    settings = {**defaults, **options}
    checked("tangents", Count, settings.get("tangents", 1))
    steps = settings.get("steps")
    if steps is not None and not (isinstance(steps, Integral) and steps >= 0):
        raise InvalidInput("steps", steps, "a whole number of updates, or None for the long run")
    population = Population(net, x, y, loss, settings.get("site", "post"))
    prediction = formula(population, batch_size, given, **settings)
    prediction.name = name
    if given:
        prediction.data, prediction.cross = population.zeros(), population.zeros()
    return prediction


def bp(population: Population, batch_size: int, given: bool) -> Prediction:
    r"""E = ∇, Var = V/N with V = Var_p G."""

    def terms(chunk: Chunk) -> list[Values]:
        signals = chunk.signals()
        return [each(chunk, "mean", signals), each(chunk, "square", signals)]

    mean, second = population.mean(terms)
    return assemble(population, batch_size, mean, mean, data=spread(second, mean, batch_size))


def fg_w(population: Population, batch_size: int, given: bool, *, perturbation, tangents, combine, per_sample) -> Prediction:
    r"""K directions over all P parameters, shared by the batch or a sample's own.

    Shared directions meet the batch gradient ĝ, with E ĝ_i² = ∇_i² + V_i/N. A sample's own meet its gradient, with
    E G_i² = ∇_i² + V_i, and N such estimates are averaged.
    """
    base = bp(population, batch_size, given)
    low_rank = isinstance(make_law(perturbation), LowRank) and combine == "mean"
    law = noise("gaussian" if low_rank else perturbation, sum(p.numel() for p in base.mean.values()), tangents, combine)
    scattered = batch_size if per_sample else 0 if given else 1
    met = {n: base.mean[n].square() + scattered * v for n, v in base.data.items()}
    norm2, averaged = sum(v.sum() for v in met.values()), batch_size if per_sample else 1
    noise_of = {n: law.norm * norm2 + (law.own + law.fourth) * v for n, v in met.items()}
    if low_rank:
        noise_of = {n: v + _shared_factors(met[n], make_law(perturbation).rank) / tangents for n, v in noise_of.items()}
    return assemble(
        population,
        batch_size,
        {n: law.keep * g for n, g in base.mean.items()},
        base.target,
        data={n: law.keep**2 * v for n, v in base.data.items()},
        perturbation={n: v / averaged for n, v in noise_of.items()},
    )


def zo(population: Population, batch_size: int, given: bool, *, perturbation, tangents, epsilon, clip) -> Prediction:
    """FG-W to leading order in ε; `analysis.theory.difference` has the bias of order ε², and what cut slopes do."""
    if clip is not None:
        raise Unsupported(
            "clip has no exact form here over batches: use clip=None, or analysis.theory.difference.clipped_slope given a batch"
        )
    checked("epsilon", Positive, epsilon)
    return fg_w(population, batch_size, given, perturbation=perturbation, tangents=tangents, combine="mean", per_sample=False)


def _shared_factors(met: Tensor, rank: int) -> Tensor:
    r"""Return what directions of rank r add to E[(G·V)² V_st²] of normal ones: (2/r)(‖row s of G‖² + ‖column t‖² + G_st²).

    Args:
        met: E G² of one parameter. One with a single axis gets normal entries, and nothing is added.
        rank: r.
    """
    if met.dim() < 2:
        return torch.zeros_like(met)
    matrix = met.flatten(1)
    added = matrix + matrix.sum(0, keepdim=True) + matrix.sum(1, keepdim=True)
    return (2 / rank * added).view_as(met)


def fg_a(
    population: Population, batch_size: int, given: bool, *, perturbation, site, readout, joint, tangents, combine, slope, mask,
    allocation="equal",
) -> Prediction:
    r"""K directions per sample over the perturbed units; the error of block l is the estimate's part there, pulled through A_p.

    With `slope="sample"` directions meet the sample's own signal z_p, and N estimates are averaged. With `slope="batch"` they
    meet the signals of the whole batch, one vector over all its units. With `mask="active"` a parameter meets noise only from
    units that move the outputs; z_p is zero at the others. With `allocation="optimal"` the samples of a given batch share the
    directions as is best.
    """
    require_maskable(mask, site, combine)
    checked("readout", Readout, readout)
    shared, last = checked("slope", Slope, slope) == "batch", population.hidden + (readout == "perturbed")
    if checked("allocation", Allocation, allocation) == "optimal":
        require_allocatable(allocation, slope, combine)
        one = partial(fg_a, batch_size=1, given=True, perturbation=perturbation, site=site, readout=readout, joint=joint,
                      tangents=1, combine=combine, slope=slope, mask=mask)
        return _shared_best([one(each) for each in population.each()] if given else [], population, last, tangents, given)
    units = [*population.units, population.outputs][:last]
    pool = batch_size if shared else 1
    if shared and make_law(perturbation).name == "sphere":
        raise Unsupported('slope="batch" has no exact form here for perturbation="sphere": use "gaussian", or measure it')
    laws = [noise(perturbation, pool * (sum(units) if joint else n), tangents, combine) for n in units]
    laws += [EXACT] * (population.hidden + 1 - last)

    def terms(chunk: Chunk) -> list[Values]:
        signals = chunk.signals()
        norms = [z.square().sum(1, keepdim=True) for z in signals[:last]]
        heard = [sum(norms)] * last if joint else norms
        heard += [torch.zeros_like(chunk.error[:, :1])] * (len(signals) - last)
        lengths = heard
        if mask == "active":
            moving = [*chunk.active(), torch.ones_like(chunk.error)]
            heard = [norm * units for norm, units in zip(heard, moving, strict=True)]
        else:
            moving = [torch.ones_like(norm) for norm in heard]
        sums = [each(chunk, "mean", signals), each(chunk, "square", signals), each(chunk, "energy", heard)]
        sums.append(sums[1] if not any(law.fourth for law in laws) else _fourth(chunk, signals, sums[1]))
        if shared:
            sums.append(each(chunk, "energy", moving))
            sums.append(gather(dict.fromkeys(m.parameters, norm.sum()) for m, norm in zip(chunk.maps, lengths, strict=True)))
        return sums

    mean, second, energy, fourth, *apart = population.mean(terms)
    law = {n: laws[int(n.split(".", 1)[0])] for n in mean}
    if shared:  # E over batches of the product of two batch means
        white, norm2 = apart
        same = 0.0 if given else 1 / batch_size
        energy = {n: same * v + (1 - same) * white[n] * norm2[n] for n, v in energy.items()}
        own = {n: same * v + (1 - same) * mean[n].square() for n, v in second.items()}
        averaged = 1
    else:
        own, averaged = second, batch_size
    return assemble(
        population,
        batch_size,
        {n: law[n].keep * v for n, v in mean.items()},
        mean,
        data={n: law[n].keep ** 2 * v for n, v in spread(second, mean, batch_size).items()},
        perturbation={
            n: (law[n].norm * v + law[n].own * own[n]) / averaged + law[n].fourth * fourth[n] / batch_size
            for n, v in energy.items()
        },
    )


def _shared_best(parts: Sequence[Prediction], population: Population, last: int, tangents: int, given: bool) -> Prediction:
    """Put samples of a batch together, Σ b_p/(N² K_p), with the best whole K_p of Σ K_p = N K.

    Args:
        parts: of each sample alone, with one direction.
        last: number of blocks that are perturbed.
    """
    if not given:
        raise Unsupported('allocation="optimal" has an exact form given the batch alone: use sampling="given_batch"')
    noise_of = torch.tensor([part.total("perturbation") for part in parts], dtype=torch.float64)
    own = torch.tensor([sum(part.total("mean", block) for block in range(last)) for part in parts], dtype=torch.float64)
    counts = best_counts(noise_of, (noise_of > 0) | (own > 0), tangents * len(parts)).clamp(min=1).tolist()
    mean = {n: sum(part.mean[n] for part in parts) / len(parts) for n in parts[0].mean}
    shared = {n: sum(part.perturbation[n] / k for part, k in zip(parts, counts, strict=True)) / len(parts) ** 2 for n in mean}
    return assemble(population, len(parts), mean, mean, perturbation=shared)


def _fourth(chunk: Chunk, signals: list[Tensor], square: Values) -> Values:
    """Return Σ_p Σ_k z_pk² A_pk², which is Σ_p (A_pᵀ z_p)² where a parameter touches one unit."""
    general = [(m, z) for m, z in zip(chunk.maps, signals, strict=True) if not isinstance(m, UnitMap)]
    return square | gather(m.energy(z.square()) for m, z in general)


def guess(population: Population, batch_size: int, given: bool, *, perturbation, rank, tangents) -> Prediction:
    r"""K directions V_l ξ per sample, with P_l = V_l V_lᵀ: E[(z·Vξ)² (a·Vξ)²] = ‖Pz‖²‖Pa‖² + 2 (Pz·a)² for normal ξ.

    A parameter of a dense block touches one unit k, so that ‖Pa‖² is its a_k² times the diagonal of P.
    """
    if make_law(perturbation).name != "gaussian":
        raise Unsupported('guess has an exact form for perturbation="gaussian" alone: use that, or measure it')
    checked("rank", Count | None, rank)
    layers = [first_linear(block) for block in list(population.net)[1:]]
    bases = [None if layer is None else row_space(layer.weight.detach(), rank) for layer in layers]
    for i, (basis, shape) in enumerate(zip(bases, population.site_shapes, strict=True)):
        if basis is not None and tuple(shape) != (len(basis),):
            raise Unsupported(f"block {i}: guess has an exact form for outputs that are vectors, not of shape {tuple(shape)}")

    def terms(chunk: Chunk) -> list[Values]:
        signals = chunk.signals()
        for i, (local, basis) in enumerate(zip(chunk.maps, bases, strict=False)):
            if basis is not None and not isinstance(local, UnitMap):
                raise Unsupported(f"block {i}: guess has an exact form for dense blocks alone; measure it")
        taken = [z if v is None else z @ v @ v.T for z, v in zip(signals, [*bases, None], strict=True)]
        length = sum(z.square().sum(1, keepdim=True) for z in taken[:-1])
        heard = [length if v is None else length * v.square().sum(1) for v in bases] + [torch.zeros_like(chunk.error[:, :1])]
        sums = (("mean", signals), ("mean", taken), ("square", taken), ("energy", heard))
        return [each(chunk, what, of) for what, of in sums]

    target, mean, second, energy = population.mean(terms)
    last = {n for n in mean if int(n.split(".", 1)[0]) == population.hidden}
    noise_of = {n: torch.zeros_like(v) if n in last else (energy[n] + v) / tangents for n, v in second.items()}
    return assemble(population, batch_size, mean, target, data=spread(second, mean, batch_size),
                    perturbation={n: v / batch_size for n, v in noise_of.items()})  # fmt: skip


def dfa(population: Population, batch_size: int, given: bool, *, site, feedback, rank, teacher: str = "error") -> Prediction:
    r"""Given feedback B: E = E_p[A_pᵀ Bᵀe_p], and the draw of the batch is all that varies.

    `teacher="target"` sends the target down in place of the error (DRTP).
    """
    held = [of_rank(b, checked("rank", Count | None, rank)) for b in check_feedback(population, feedback)]

    def terms(chunk: Chunk) -> list[Values]:
        teaching = chunk.error if teacher == "error" else chunk.one_hot
        signals = [*(teaching @ b for b in held), chunk.error]
        return [each(chunk, "mean", chunk.signals()), each(chunk, "mean", signals), each(chunk, "square", signals)]

    target, mean, second = population.mean(terms)
    return assemble(population, batch_size, mean, target, data=spread(second, mean, batch_size))


def frozen(population: Population, batch_size: int, given: bool) -> Prediction:
    """Zero in the hidden blocks, BP in the readout."""
    whole = bp(population, batch_size, given)
    hidden = {n: torch.zeros_like(v) for n, v in whole.mean.items() if int(n.split(".", 1)[0]) < population.hidden}
    return assemble(population, batch_size, whole.mean | hidden, whole.target, data=whole.data | hidden)


def fdfa(
    population: Population, batch_size: int, given: bool, *, perturbation, site, joint, tangents, directions, feedback_rule,
    feedback_lr, warmup, feedback, steps, feedback_law, rank,
) -> Prediction:
    r"""A_pᵀ Bᵀ e_p averaged over the batch, with the random feedback B of the steps before, independent of the batch.

    With C_p = e_p ⊗ A_p, μ = E C and V(X) = Var⟨B, X⟩: data Var_p⟨B̄, C_p⟩/N, feedback V(μ), cross E_p V(C_p − μ)/N.
    """
    if feedback is not None:
        return dfa(population, batch_size, given, site=site, feedback=feedback, rank=rank)
    if rank is not None:
        raise Unsupported("rank has an exact form for fdfa with the feedback given alone: hand it in, or measure it")
    if feedback_rule != "momentum":
        raise Unsupported(
            f'feedback_rule={feedback_rule!r} has no exact form, use "momentum"; analysis.theory.laws.adam_feedback_variance '
            "approximates the spread of feedback that Adam trains"
        )
    if feedback_law is None:
        rate = 1e-2 if feedback_lr is None else feedback_lr
        feedback_law = law_of(population, batch_size, rate, joint, perturbation, tangents, directions, warmup)
    law = feedback_law
    expected, forms = law.mean(steps), feedback_forms(law, population, steps)

    def terms(chunk: Chunk) -> list[Values]:
        signals = [*(chunk.error @ b for b in expected), chunk.error]
        return [
            each(chunk, "mean", chunk.signals()),
            each(chunk, "mean", signals),
            each(chunk, "square", signals),
            gather(form.of_samples(chunk) for form in forms),
        ]

    target, mean, second, of_samples = population.mean(terms, jacobians=True)
    feedback = population.zeros() | gather(form.of_mean(population) for form in forms)
    return assemble(
        population,
        batch_size,
        mean,
        target,
        data=spread(second, mean, batch_size),
        feedback=feedback,
        cross={n: (v - feedback[n]).clamp(min=0) / batch_size for n, v in of_samples.items()},
        feedback_law=law,
    )


def check_feedback(population: Population, feedback: Sequence[Tensor] | None) -> list[Tensor]:
    """Return given feedback as float64 (O, units) per hidden block, or raise `InvalidInput`."""
    shapes = [(population.outputs, *shape) for shape in population.site_shapes]
    given = None if feedback is None else [tuple(b.shape) for b in feedback]
    if given != shapes:
        raise InvalidInput("feedback: shapes", given, f"{shapes}, one tensor per hidden block, e.g. est.feedback")
    return [b.detach().to(population.device).double().flatten(1) for b in feedback]


FORMULAS: Mapping[str, tuple[Callable[..., Prediction], dict[str, object]]] = {
    "bp": (bp, {}),
    "frozen": (frozen, {}),
    "fg-w": (fg_w, {"perturbation": "gaussian", "tangents": 1, "combine": "mean", "per_sample": False}),
    "zo": (zo, {"perturbation": "gaussian", "tangents": 1, "epsilon": 1e-3, "clip": None}),
    "fg-a": (fg_a, {"perturbation": "gaussian", "site": "pre", "readout": "exact", "joint": True, "tangents": 1,
                    "combine": "mean", "slope": "sample", "mask": "none", "allocation": "equal"}),
    "guess": (guess, {"perturbation": "gaussian", "rank": None, "tangents": 1}),
    "dfa": (dfa, {"site": "post", "feedback": None, "rank": None}),
    "dkp": (dfa, {"site": "post", "feedback": None, "rank": None}),
    "drtp": (partial(dfa, teacher="target"), {"site": "post", "feedback": None, "rank": None}),
    "fdfa": (fdfa, {"perturbation": "gaussian", "site": "post", "joint": True, "tangents": 1, "directions": "independent",
                    "feedback_rule": "momentum", "feedback_lr": None, "warmup": False, "feedback": None, "steps": None,
                    "feedback_law": None, "rank": None}),
}  # fmt: skip
