"""Forward gradients by activity perturbation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.estimators.base import Estimator, repeat
from fdfa_core.estimators.options import Allocation, Combination, Count, Mask, Perturbation, Readout, Site, Slope
from fdfa_core.estimators.registry import register
from fdfa_core.estimators.tangents import PerturbedUnits, Tangents, best_counts
from fdfa_core.linearisation.factored import Gradient, Outer, norm2
from fdfa_core.linearisation.trace import Gradients, Trace, merge
from fdfa_core.networks.blocks import Block, require_site
from fdfa_core.networks.served import coupled
from fdfa_core.perturbations import Gaussian, Rademacher, Sphere
from fdfa_core.random_state import preserve_random_stream


@register("fg-a")
class ActivityPerturbation(Estimator):
    r"""FG-A: the error of block l is s u_l, with s = Σ_l δ_l · u_l the slope of a sample's loss (Ren et al. 2022).

    Every sample has its own direction u_l at a site of every hidden block; one tangent pass gives all slopes. A local
    vector–Jacobian product turns the error into the block's parameter gradients. Unbiased where a sample's perturbation moves
    only its own loss. Its variance grows with the number of perturbed units, not of parameters. Cost: one forward pass,
    K tangent passes, local gradients.

    Batch normalisation in training mode lets a sample's perturbation move the losses of the others, which a sample's own slope
    does not see: `slope="sample"` is then biased. `slope="batch"` gives every sample the slope of the whole batch's loss along
    all perturbations together: unbiased on any network, and its variance is about N times larger.

    Args:
        perturbation: law of u, a name or an object.
        site: "pre" perturbs the affine output, "post" the block output.
        readout: "exact" uses the readout's true gradient; "perturbed" perturbs the outputs too.
        joint: perturb all blocks in one tangent pass, or one block at a time (a pass per block, less variance).
        tangents: K, directions per sample.
        combine: "mean", or "projection" of a sample's error on the span of its K directions (see `Tangents`): over all blocks
            together with `joint`, in each block otherwise.
        slope: "sample" or "batch".
        mask: "active" perturbs only units whose value moves their block's output (at site="pre"): behind a ReLU, those above
            zero. The slope along any other is zero, so that the estimate stays unbiased; the number of active units takes the
            place of their number in the variance (Ren et al. 2022, section 3.6). It costs a pass through the activations.
        allocation: "equal" gives each sample K directions. "optimal" gives sample p the K_p, of Σ K_p = N K, with the least
            variance Σ b_p/(N² K_p) (docs/theory.md, section 4). An oracle: b_p comes from the true errors of all blocks, by a
            backward pass through the network and a local gradient for every unit of every sample. It bounds what any
            allocation can gain, and is no method to train with. Unbiased, for K_p knows the batch and not the directions.
            Cost: max K_p tangent passes.

    Raises:
        InvalidInput: options that do not go together, or a network without the site.
        Unsupported: in a call with `allocation="optimal"`, batch normalisation in training mode.
    """

    def __init__(
        self,
        net,
        *,
        perturbation: Perturbation = "gaussian",
        site: Site = "pre",
        readout: Readout = "exact",
        joint: bool = True,
        tangents: Count = 1,
        combine: Combination = "mean",
        slope: Slope = "sample",
        mask: Mask = "none",
        allocation: Allocation = "equal",
        **common,
    ):
        super().__init__(net, **common)
        self.readout, self.slope, self.joint, self.mask, self.allocation = readout, slope, joint, mask, allocation
        require_maskable(mask, site, combine)
        require_allocatable(allocation, slope, combine)
        for block in range(len(net) - 1):
            require_site(net, block, site)
        self.tangents, self.site = Tangents(perturbation, tangents, combine), site
        if allocation == "optimal" and type(self.tangents.law) not in (Gaussian, Rademacher, Sphere):
            accepted = '"equal" with a law of your own, whose noise is not known; or "gaussian", "rademacher" or "sphere"'
            raise InvalidInput("allocation", allocation, accepted)

    @property
    def expectation(self) -> str:
        """The gradient, unless directions are projected on, or samples are coupled and each follows its own slope."""
        unbiased = self.tangents.how == "mean" and (self.slope == "batch" or not coupled(self.net))
        return "gradient" if unbiased else "biased"

    def variance(self, x: Tensor, y: Tensor) -> float | None:
        """Return the closed form (docs/theory.md, section 4), in time and memory for small networks: a pull for every unit.

        None where samples are coupled, directions projected on, or the law is not one of the project's; and on the sphere with
        the batch's slope.
        """
        if self.expectation == "biased" or coupled(self.net):
            return None
        x, y, _ = self.admit(x, y)
        with torch.no_grad(), preserve_random_stream(self.device, self.net):
            trace = self.trace(x, shortcuts=True)
            error = self.loss.error(trace.output, y)[1]
            groups = self.perturbed(trace, error)
            if self.allocation == "optimal" and groups:
                noise, counts = self.shares(groups, len(error))
                return float((noise / counts.clamp(min=1)).sum())
            parts = [self.tangents.activity_noise(group, self.slope == "batch") for group in groups]
        return None if None in parts else float(sum(parts))

    def perturbed(self, trace: Trace, error: Tensor) -> list[list[PerturbedUnits]]:
        """Return what directions meet and move, a list for the blocks that are perturbed together."""
        if self.allocation == "optimal" and coupled(self.net):
            raise Unsupported(
                'fg-a with allocation="optimal" cannot serve batch normalisation in training mode, where the error of a sample '
                'is not its own: use allocation="equal", or the network in evaluation mode'
            )
        units = perturbed_units(trace, error, self.site)
        if self.readout == "exact":
            units.pop()
        if self.mask == "active":
            for each, block in zip(units, [block for block in trace.hidden if not block.frozen], strict=False):
                each.rows = each.rows * block.active().flatten(1)
        groups = [units] if self.joint else [[each] for each in units]
        return [group for group in groups if group]

    def shares(self, groups: list[list[PerturbedUnits]], samples: int) -> tuple[Tensor, Tensor]:
        """Return what one direction of each sample adds to the variance, and the best numbers of directions, (N,) on the CPU.

        Groups of blocks get the same ones.
        """
        noise = sum(self.tangents.sample_noise(group) for group in groups).cpu()
        own = sum(each.own for group in groups for each in group).cpu()
        return noise, best_counts(noise, (noise > 0) | (own > 0), self.tangents.count * samples)

    def trace(self, x: Tensor, **options: bool) -> Trace:
        """Run the network forward; an oracle keeps what a backward pass needs, and takes its tangents as ever."""
        if self.allocation == "equal":
            return super().trace(x, **options)
        trace = super().trace(x, **{**options, "shortcuts": True})
        trace.shortcuts = options.get("shortcuts", False)
        return trace

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return local gradients of the estimated errors, and the readout's."""
        sites = [block.site(self.site) for block in trace.hidden]
        live = [i for i, block in enumerate(trace.hidden) if not block.frozen]  # what does not train needs no error
        if self.readout == "perturbed":
            live.append(len(sites))
            sites.append(trace.output)
        gradients: Gradients = {}
        tangents, weights = self.tangents, None
        if self.allocation == "optimal" and live:
            weights = mean_weights(self.shares(self.perturbed(trace, error), len(error))[1]).to(error)
            tangents = Tangents(tangents.law, len(weights), "mean")
        for group in ([live] if self.joint else [[i] for i in live]) if live else ():
            sizes = [sites[i][0].numel() for i in group]
            tangents.check(sum(sizes) * (len(error) if self.slope == "batch" else 1))
            u = tangents.sample(lead, (len(error), sum(sizes)), self.generator, self.dtype)  # (*lead, K, N, n)
            if self.mask == "active":
                moving = [trace.blocks[i].active() if i < len(trace.hidden) else torch.ones_like(trace.output) for i in group]
                u *= torch.cat([units.flatten(1) for units in moving], dim=-1)
            axes = tangents.axes(lead)
            parts = {i: v.reshape(*axes, *sites[i].shape) for i, v in zip(group, u.split(sizes, dim=-1), strict=True)}
            outputs = parts.pop(len(trace.hidden), None)
            hidden = [parts.get(i) for i in range(len(trace.hidden))]
            slopes = trace.slopes(hidden, self.site, error, outputs).view(*lead, tangents.count, -1)  # of the mean loss
            slopes = slopes if weights is None else slopes * weights
            signals = self.errors(slopes, u, tangents).split(sizes, dim=-1)
            for i, signal in zip(group, signals, strict=True):
                merge(gradients, trace.blocks[i].pull(signal.reshape(*lead, *sites[i].shape), self.site))
        if self.readout == "exact":
            merge(gradients, exact_readout(trace, error, lead))
        return gradients

    def errors(self, slopes: Tensor, u: Tensor, tangents: Tangents) -> Tensor:
        """Return estimated errors (*lead, N, n) from slopes (*lead, K, N) along directions (*lead, K, N, n)."""
        shape = (*u.shape[:-3], *u.shape[-2:])
        if self.slope == "batch":  # the batch's perturbations are one direction
            slopes, u = slopes.sum(-1, keepdim=True), u.flatten(-2).unsqueeze(-2)
        return tangents.combine(slopes.mT, u.transpose(-3, -2)).reshape(shape)


@register("guess")
class GuessedDirections(Estimator):
    r"""Guess: FG-A with directions from the space in which the error of a block must lie.

    After Singhal et al. (2023), and Wang, Markou & Campbell (2025), who orthogonalise and truncate. The error at the output of
    block l is W_{l+1}ᵀ times that behind W_{l+1}, the weights of the linear layer with which the next block begins: it lies in
    their row space, the same for all samples. Directions are u_l = V_l ξ, with orthonormal columns V_l (n_l, k) that span it
    and ξ of identity covariance, so that E g pulls V_l V_lᵀ δ_l in place of δ_l: unbiased where k is the rank, with a variance
    that grows with k and not with n_l. With `rank` below that, V_l holds the first right singular vectors, in the order of the
    singular values: less variance, and the bias (V_l V_lᵀ − I) δ_l. Before a block that begins with anything else, and where
    W_{l+1} has as many rows as columns, directions are those of FG-A at site="post".

    Batch normalisation in training mode biases it as it does FG-A with each sample's own slope. Cost: that of FG-A, and for
    each step a QR decomposition of every W_{l+1}ᵀ with fewer rows than columns, or with `rank` a singular value decomposition.

    Args:
        perturbation: law of ξ, a name or an object.
        rank: the most dimensions of a block's directions, or None for all of the row space.
        tangents: K, directions per sample.
    """

    def __init__(
        self, net, *, perturbation: Perturbation = "gaussian", rank: Count | None = None, tangents: Count = 1, **common
    ):
        super().__init__(net, **common)
        self.tangents, self.rank = Tangents(perturbation, tangents, "mean"), rank
        self._bases: dict[int, tuple[Tensor, Tensor | None]] = {}  # weights as they were, and V_l

    @property
    def expectation(self) -> str:
        """The gradient, where no rank cuts the space and samples are not coupled."""
        return "gradient" if self.rank is None and not coupled(self.net) else "biased"

    def basis(self, block: int) -> Tensor | None:
        """Return V_l (n_l, k) at the present weights, or None where all directions are taken."""
        layer = first_linear(self.net[block + 1])
        if layer is None:
            return None
        weight = layer.weight.detach()
        if block not in self._bases or not torch.equal(self._bases[block][0], weight):
            self._bases[block] = weight.clone(), row_space(weight, self.rank)
        return self._bases[block][1]

    def variance(self, x: Tensor, y: Tensor) -> float | None:
        """Return the closed form (docs/theory.md, section 4): that of FG-A in the coordinates of the directions' spaces.

        None where samples are coupled, an output holds several vectors, or the law is not one of the project's.
        """
        if coupled(self.net):
            return None
        x, y, _ = self.admit(x, y)
        with torch.no_grad(), preserve_random_stream(self.device, self.net):
            trace = self.trace(x, shortcuts=True)
            live = [i for i, block in enumerate(trace.hidden) if not block.frozen]
            bases = [self.basis(i) for i in live]
            if any(v is not None and trace.blocks[i].output.dim() > 2 for i, v in zip(live, bases, strict=True)):
                return None
            units = perturbed_units(trace, self.loss.error(trace.output, y)[1], "post", bases)[:-1]
            return self.tangents.activity_noise(units, False) if units else 0.0

    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return local gradients of the estimated errors, and the readout's."""
        gradients: Gradients = dict(exact_readout(trace, error, lead))
        live = [i for i, block in enumerate(trace.hidden) if not block.frozen]
        if not live:
            return gradients
        sites, bases = {i: trace.blocks[i].site("post") for i in live}, {i: self.basis(i) for i in live}
        # dimensions of a sample's directions: k for each vector of n units that it holds (a sequence holds several)
        shapes = {i: (s[0].numel(),) if v is None else (s[0].numel() // len(v), v.shape[1]) for (i, s), v in
                  zip(sites.items(), bases.values(), strict=True)}  # fmt: skip
        sizes = [math.prod(shape) for shape in shapes.values()]
        xi = self.tangents.sample(lead, (len(error), sum(sizes)), self.generator, self.dtype)  # (*lead, K, N, Σ k)

        def lifted(values: Tensor, axes: tuple[int, ...]) -> dict[int, Tensor]:
            """Return V_l of each block's part of some values, in the shape of its site."""
            parts = zip(live, values.split(sizes, dim=-1), strict=True)
            spread = {i: p if bases[i] is None else p.unflatten(-1, shapes[i]) @ bases[i].T for i, p in parts}
            return {i: p.reshape(*axes, *sites[i].shape) for i, p in spread.items()}

        directions = lifted(xi, self.tangents.axes(lead))
        hidden = [directions.get(i) for i in range(len(trace.hidden))]
        slopes = trace.slopes(hidden, "post", error, None).view(*lead, self.tangents.count, -1)  # of the mean loss
        for i, signal in lifted(self.tangents.combine(slopes.mT, xi.transpose(-3, -2)), lead).items():
            merge(gradients, trace.blocks[i].pull(signal, "post"))
        return gradients


def perturbed_units(
    trace: Trace, error: Tensor, site: Site, bases: Sequence[Tensor | None] | None = None
) -> list[PerturbedUnits]:
    """Return what a perturbation of each hidden block that trains, and of the outputs, meets and moves.

    Args:
        trace: a pass with shortcuts.
        error: e, (N, O).
        site: where the hidden blocks are perturbed.
        bases: orthonormal columns (n, k) in which a block's directions lie; None for all directions.
    """
    met = [signal[0].flatten(1) for signal in trace.back(error.unsqueeze(0), site)]
    live = [i for i, block in enumerate(trace.hidden) if not block.frozen]
    places = [(trace.blocks[i], met[i], site) for i in live] + [(trace.readout, error, "post")]
    found = []
    for (block, z, at), basis in zip(places, [*(bases or [None] * len(live)), None], strict=True):
        axes = torch.eye(z.shape[1], dtype=z.dtype, device=z.device) if basis is None else basis.T  # (k, n)
        shape = block.shapes[at]
        along, z = z @ axes.T, z @ axes.T @ axes
        rows, own = [], []
        for p in range(len(z)):  # one sample after another: k signals each
            signals = z.new_zeros(len(axes) + 1, *z.shape)
            signals[:-1, p], signals[-1, p] = axes, z[p]
            moved = sum(norm2(_reached(g)) for g in block.pull(signals.reshape(-1, *shape), at).values())
            rows.append(moved[:-1]), own.append(moved[-1])
        whole = sum(norm2(g) for g in block.pull(z.reshape(1, *shape), at).values())
        found.append(PerturbedUnits(along, torch.stack(rows), torch.stack(own), float(whole)))
    return found


def mean_weights(counts: Tensor) -> Tensor:
    """Return weights (max K_p, N) that turn a mean over max K_p directions into means over each sample's own first K_p."""
    most = max(1, int(counts.max()))
    drawn = torch.arange(most).unsqueeze(1) < counts
    return drawn * most / counts.clamp(min=1).double()


def _reached(gradient: Gradient) -> Gradient:
    """Return gradients without the outer products that are zero in every draw: most are, where one sample has a signal."""
    if not isinstance(gradient, Outer):
        return gradient
    some = gradient.left.ne(0).any(0).any(-1)  # by value: a layer that is used twice has the rows of both uses
    return Outer(gradient.left[:, some], gradient.right[some]) if some.any() else gradient


def first_linear(block: nn.Module) -> nn.Linear | None:
    """Return the linear layer that all of a block's input meets first, flattened or not; None if anything else does."""
    while isinstance(block, Block | nn.Sequential) and not block._forward_pre_hooks:
        parts = [block.affine] if isinstance(block, Block) else [part for part in block if not isinstance(part, nn.Flatten)]
        if not parts:
            return None
        block = parts[0]
    plain = type(block) is nn.Linear and isinstance(block.weight, nn.Parameter) and not block._forward_pre_hooks
    return block if plain else None


def row_space(weight: Tensor, rank: int | None = None) -> Tensor | None:
    """Return orthonormal columns (n, k) that span the rows of a matrix (m, n), or its first k right singular vectors.

    Args:
        weight: the matrix.
        rank: the most columns.

    Returns:
        None where the columns would span all n dimensions.
    """
    rows, columns = weight.shape
    exact = weight if weight.dtype in (torch.float32, torch.float64) else weight.float()  # no decomposition has less
    if min(rows, columns) > (rank or rows):
        return torch.linalg.svd(exact, full_matrices=False).Vh[:rank].T.to(weight.dtype)
    return torch.linalg.qr(exact.T).Q.to(weight.dtype) if rows < columns else None


def require_maskable(mask: Mask, site: Site, combine: Combination) -> None:
    """Raise `InvalidInput` where masked directions would not give what the options promise."""
    if mask == "active" and site == "post":
        accepted = '"none" with site="post", where a unit at zero moves the outputs too; or site="pre"'
        raise InvalidInput("mask", mask, accepted)
    if mask == "active" and combine == "projection":
        raise InvalidInput("mask", mask, '"none" with combine="projection"; or combine="mean"')


def require_allocatable(allocation: Allocation, slope: Slope, combine: Combination) -> None:
    """Raise `InvalidInput` where directions cannot be given to samples one by one, or where no best shares are known."""
    if allocation == "optimal" and slope == "batch":
        accepted = '"equal" with slope="batch", where directions belong to the batch; or slope="sample"'
        raise InvalidInput("allocation", allocation, accepted)
    if allocation == "optimal" and combine == "projection":
        raise InvalidInput("allocation", allocation, '"equal" with combine="projection"; or combine="mean"')


def exact_readout(trace: Trace, error: Tensor, lead: tuple[int, ...]) -> Gradients:
    """Return the readout's true gradient, the same in every draw."""
    return repeat(trace.readout.pull(error), lead)
