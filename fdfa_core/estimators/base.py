"""What every estimator shares: input checks, random stream, draws, writing gradients, state."""

from __future__ import annotations

import contextlib
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fdfa_core.errors import InvalidInput
from fdfa_core.estimators import consistency
from fdfa_core.estimators.averages import JacobianAverage
from fdfa_core.estimators.index import COMMON
from fdfa_core.linearisation.factored import dense
from fdfa_core.linearisation.functional import Members, members
from fdfa_core.linearisation.trace import Gradients, Trace
from fdfa_core.losses import make_loss
from fdfa_core.networks.batch import check_batch, explained
from fdfa_core.networks.blocks import BlockNetwork
from fdfa_core.networks.served import require_blockwise, require_plain_types
from fdfa_core.random_state import preserve_random_stream
from fdfa_core.signatures import Option, check_options, options_of


class Estimator(ABC):
    """Turns a batch into one gradient estimate per parameter.

    A subclass implements `gradients` and, if it has state that learns, `update`, `own_state` and `load_own_state`, and sets
    `stateful`. Options are keyword-only arguments of its `__init__`, which calls `super().__init__(net, **common)`. The values
    of annotated options are checked by their annotations before `__init__` begins.

    Args:
        net: the network.
        loss: a name or a callable (outputs, targets) → per-sample losses; the gradient is of its mean over the batch.
        seed: seeds the estimator's own generator. Equal seeds give equal bits.
        replicas: R independent copies of the state, or None for one.

    Attributes:
        name: the registered name.
        stateful: whether training moves a state of its own.
        needs_gradients: whether `update` uses the gradients, so that `advance` makes some for it.
        need_pull, need_push: whether the method takes local gradients, and tangents.
        blockwise: whether the method works block by block, as all do but backpropagation.
        site: where the method perturbs or injects, "pre" or "post".
        check: compare the tangents and local gradients of the network with reverse mode when the estimator first meets it
            (`fdfa_core.estimators.consistency`).
        expectation: what the mean of the draws is said to be, given the batch and the state: "gradient", "biased", or a method
            (x, y) → gradients; None where nothing is said. `fdfa check` and `fdfa_core.testing` test it, and `variance` too.
        variance: the trace of the draws' covariance, given the same: 0.0, or a method (x, y) → that number, or one for each
            parameter by name; None where no closed form is said.
        shortcuts: let draws (and replicas that advance) share backward passes through the blocks where that gives the same
            numbers for less. One draw, and training, never do.
    """

    name: ClassVar[str]
    stateful: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    need_pull: ClassVar[bool] = True
    need_push: ClassVar[bool] = True
    blockwise: ClassVar[bool] = True
    site: str = "post"
    expectation: str | Callable[[Tensor, Tensor], Mapping[str, Tensor]] | None = None
    variance: float | Callable[[Tensor, Tensor], float | Mapping[str, float] | None] | None = None
    shortcuts: bool = True
    check: bool = True

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        if "update" in vars(cls) and not _takes_gradients(cls.update):
            if cls.needs_gradients:
                remedy = "def update(self, trace, error, targets, gradients), which hands all four to super().update"
                raise InvalidInput(f"{cls.__qualname__}.update", "a method without gradients", remedy)
            cls.update = _without_gradients(cls.update)

    def __new__(cls, *arguments: Any, **options: Any):
        """Check the options by the annotations of the class's constructors; raises `InvalidInput`."""
        check_options(cls.options(), options)
        return super().__new__(cls)

    def __init__(self, net: BlockNetwork, *, loss="cross_entropy", seed: int = 0, replicas: int | None = None):
        if not isinstance(net, BlockNetwork):
            raise InvalidInput("net", type(net).__name__, "a BlockNetwork, e.g. BlockNetwork(*hidden_blocks, readout)")
        if replicas is not None and (not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 1):
            raise InvalidInput("replicas", replicas, "a positive integer, or None for one unreplicated state")
        self.net, self.loss = net, make_loss(loss)
        self.replicas = replicas if self.stateful else None
        parameter = next(net.parameters(), None)
        if parameter is None:
            raise InvalidInput("net", net, "a network with parameters")
        self.device, self.dtype = parameter.device, parameter.dtype
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._known = list(net.named_parameters())
        self._met: set[bool] = set()  # the modes in which the network has been looked at

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Return the method's own options: the keyword-only arguments of its class's and its bases' `__init__`."""
        constructors = [vars(owner)["__init__"] for owner in reversed(cls.__mro__) if "__init__" in vars(owner)]
        return {name: option for name, option in options_of(*constructors).items() if name not in COMMON}

    @classmethod
    def filled_options(cls, given: Mapping[str, object]) -> dict[str, object]:
        """Return the given options and the defaults of the others; a class whose defaults depend on options says how."""
        return {name: option.default for name, option in cls.options().items()} | dict(given)

    # What a method defines -------------------------------------------------------------------------------------------

    @abstractmethod
    def gradients(self, trace: Trace, error: Tensor, targets: Tensor, lead: tuple[int, ...]) -> Gradients:
        """Return gradients of the mean loss for every parameter.

        Args:
            trace: the forward pass.
            error: e = ∂(mean loss)/∂outputs, (N, O).
            targets: the batch's targets.
            lead: () for one draw of the parameters' shapes; (R,) for R draws with that leading dimension.
        """

    def update(  # noqa: B027 (stateless methods have none)
        self, trace: Trace, error: Tensor, targets: Tensor, gradients: Gradients | None = None
    ) -> None:
        """Advance the method's own state, after its use.

        Args:
            trace, error, targets: as in `gradients`.
            gradients: what `gradients` returned for this step, one draw, or with replicas one in each. From `advance`, which
                makes no gradients otherwise, a method gets them only with `needs_gradients`, and None without it.

        A subclass without `needs_gradients` may leave the last argument out.
        """

    def jacobian_average(self) -> JacobianAverage | None:
        """Say of which moving average of output Jacobians the feedback is made whose product with the error is the gradient.

        Returns:
            None for a method whose gradient is nothing of the kind.

        Raises:
            Unsupported: the method's feedback can be such an average, and with the options given it is not.
        """
        return None

    def step(self, trace: Trace, error: Tensor, targets: Tensor) -> Gradients:
        """Return the gradients of one training step and advance the state: first its use, then its update."""
        gradients = self.gradients(trace, error, targets, ())
        self.update(trace, error, targets, gradients)
        return gradients

    def own_gradients(self, x: Tensor, y: Tensor, *, replica: int | None = None) -> Gradients | None:
        """Return the exact gradient of the method's own objective at its present state; nothing moves.

        Args:
            x, y: the batch.
            replica: whose state is meant, of those that there are. None means all: what differs between them then has a
                leading dimension R, and may be factored.

        Returns:
            None for a method that follows the network's loss.
        """
        return None

    def stationary_steps(self) -> int:
        """Return how many steps at frozen weights bring the state close to its stationary distribution; 0 without one."""
        return 0

    def own_state(self) -> dict[str, object]:
        """Return the method's state beyond the random stream: tensors, numbers and nested containers of them."""
        return {}

    def load_own_state(self, state: Mapping[str, object]) -> None:  # noqa: B027
        """Restore what `own_state` returned."""

    # What a user calls -----------------------------------------------------------------------------------------------

    def estimate(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return one draw: a gradient of the mean loss per parameter, keys and shapes of `net.named_parameters()`.

        The state does not change, except for its random stream. The network's parameters, gradients and buffers do not
        change either. With replicas, the draw is that of replica 0.

        Raises:
            InvalidInput: x and y do not fit each other or the network, or x is not finite.
        """
        if self.replicas is not None:
            return {name: g[0] for name, g in self.sample(x, y, self.replicas).items()}
        x, y, _ = self.admit(x, y)
        with torch.no_grad(), preserve_random_stream(self.device, self.net):
            trace = self.trace(x)
            _, error = self.loss.error(trace.output, y)
            return self._ordered(self.gradients(trace, error, y, ()))

    def draws(self, x: Tensor, y: Tensor, replicates: int, *, replica: int | None = None) -> Gradients:
        """Return R independent draws on one batch in factored form (see `fdfa_core.linearisation.factored`).

        Args:
            x, y: the batch.
            replicates: R. With replicas, draw r uses the state of replica r, so R must be their number.
            replica: use the state of this replica for the one draw asked for (`replicates=1`).

        Raises:
            InvalidInput: R below one, or not the number of replicas.
        """
        require_replicates(replicates)
        if self.replicas is not None and replica is None and replicates != self.replicas:
            raise InvalidInput("replicates", replicates, f"{self.replicas}, the number of replicas of the state")
        x, y, _ = self.admit(x, y)
        with torch.no_grad(), preserve_random_stream(self.device, self.net), self._using(replica):
            trace = self.trace(x, shortcuts=self.shortcuts and replicates > 1)
            _, error = self.loss.error(trace.output, y)
            return self._ordered(self.gradients(trace, error, y, (replicates,)))

    def sample(self, x: Tensor, y: Tensor, replicates: int) -> dict[str, Tensor]:
        """Return R independent draws given the state, each tensor with a leading dimension R (see `draws`)."""
        return {name: dense(g) for name, g in self.draws(x, y, replicates).items()}

    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Write `p.grad` for every parameter that trains, then advance the state. Returns the mean loss (0-d, detached).

        Buffers (running statistics) move once, as in any training step. Existing gradients are replaced, not added to; a
        parameter that does not require a gradient gets None.
        """
        if self.replicas is not None:
            raise InvalidInput("replicas", self.replicas, "None: an estimator that trains has one state")
        x, y, parameters = self.admit(x, y)
        for _, parameter in parameters:
            parameter.grad = None  # the new gradients take the old ones' memory, still warm in the cache
        with torch.no_grad():
            trace = self.trace(x, update_buffers=True)
            loss, error = self.loss.error(trace.output, y)
            gradients = self.step(trace, error, y)
            for name, parameter in parameters:
                if parameter.requires_grad:
                    write_gradient(parameter, gradients[name])
        return loss

    def advance(self, x: Tensor, y: Tensor) -> None:
        """Advance the state on a batch and change nothing else. An observer of another estimator's training does this."""
        if not self.stateful:
            return
        x, y, _ = self.admit(x, y)
        with torch.no_grad(), preserve_random_stream(self.device, self.net):
            trace = self.trace(x, shortcuts=self.shortcuts and self.replicas is not None)
            error, lead = self.loss.error(trace.output, y)[1], () if self.replicas is None else (self.replicas,)
            self.update(trace, error, y, self.gradients(trace, error, y, lead) if self.needs_gradients else None)

    def state_dict(self) -> dict[str, object]:
        """Return random stream and state."""
        return {"generator": self.generator.get_state(), **self.own_state()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` returned; training then goes on to the same bits."""
        self.generator.set_state(state["generator"])
        self.load_own_state(state)

    # Shared machinery ------------------------------------------------------------------------------------------------

    def trace(self, x: Tensor, **options: bool) -> Trace:
        """Run the network forward, block by block; options: `update_buffers` and `shortcuts` of `Trace`."""
        with explained(self.net, x):
            held, self._held = self._held, None
            trace = Trace(self.net, x, site=self.site, need_pull=self.need_pull, held=held, **options)
        self.loss.shape = trace.shape
        return trace

    def admit(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, list[tuple[str, Tensor]]]:
        """Return a batch that fits, and the network's parameters by name; at the first one, look at the network (`meet`).

        Raises:
            InvalidInput: x and y do not fit, or the network's parameters are others than when the estimator was made.
            Unsupported: the network computes what tangents or local gradients cannot follow.
        """
        self._held = members(self.net)
        parameters = list(self._held.parameters.items())
        same = len(parameters) == len(self._known) and parameters[0][1].dtype is self.dtype
        if not (same and all([a[1] is b[1] and a[0] == b[0] for a, b in zip(parameters, self._known, strict=True)])):
            given = "other parameters, or parameters of another type, than when the estimator was made"
            raise InvalidInput("net", given, "the network as it was: make a new estimator")
        if self.blockwise:
            require_plain_types(self.device)
        x, y = check_batch(self.net, x, y)
        if self.net.training not in self._met:
            self.meet(x, y)
            self._met.add(self.net.training)
        return x, y, parameters

    def meet(self, x: Tensor, y: Tensor) -> None:
        """Look at the network on the first batch in a mode; raises as `admit` does, and changes nothing."""
        require_blockwise(self.net)
        if self.check and consistency.enabled():
            self.look(consistency.check(self.net, x, y, self.loss, push=self.need_push, pull=self.need_pull))

    def look(self, findings: list[consistency.BlockFinding]) -> None:  # noqa: B027 (most methods have nothing to add)
        """Raise `Unsupported` where what the check has seen of the blocks is right and yet of no use to the method."""

    @contextlib.contextmanager
    def _using(self, replica: int | None):
        before, self._replica = self._replica, replica
        try:
            yield
        finally:
            self._replica = before

    _replica: int | None = None
    _held: Members | None = None  # what the network holds, from `admit` to the forward pass

    @property
    def replicated(self) -> bool:
        """Whether draws differ in the replica whose state they use (and not only in their perturbation)."""
        return self.replicas is not None and self._replica is None

    def held(self, state: Tensor) -> Tensor:
        """Return a state tensor as the draws at hand use it: all replicas (R, …), or the one that was asked for."""
        return state if self.replicas is None or self._replica is None else state[self._replica]

    def in_chunks(self, trace: Trace, error: Tensor, targets: Tensor, draws: int, chunk: int) -> Gradients:
        """Return R draws made a few at a time, for methods whose directions would fill the memory if held together."""
        parts: list[Gradients] = []
        for first in range(0, draws, chunk):
            many = min(chunk, draws - first)
            if self.replicated:
                for r in range(first, first + many):
                    with self._using(r):
                        parts.append(self.gradients(trace, error, targets, (1,)))
            else:
                parts.append(self.gradients(trace, error, targets, (many,)))
        return {name: torch.cat([dense(part[name]) for part in parts]) for name in parts[0]}

    def _ordered(self, gradients: Gradients) -> Gradients:
        """Return gradients in the order of the parameters; what does not train and has none gets zeros."""
        lead: tuple[int, ...] = ()
        for name, p in self._known:
            if name in gradients:
                shape = gradients[name].shape
                lead = tuple(shape[: len(shape) - p.dim()])
                break
        missing = {name: repeat({name: torch.zeros_like(p)}, lead)[name] for name, p in self._known if name not in gradients}
        return {name: gradients[name] if name in gradients else missing[name] for name, _ in self._known}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"


def require_replicates(replicates: int) -> None:
    """Raise `InvalidInput` unless a number of draws is a positive integer."""
    if not isinstance(replicates, int) or isinstance(replicates, bool) or replicates < 1:
        raise InvalidInput("replicates", replicates, "a positive integer")


def write_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Set a parameter's gradient, by way of the hooks that it has for such moments."""
    if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
        parameter.backward(gradient)  # of a leaf: calls its hooks, writes, and calls those that follow the writing
    else:
        parameter.grad = gradient


def _takes_gradients(update: Callable[..., None]) -> bool:
    """Whether a method `update` takes four arguments beside self."""
    try:
        inspect.signature(update).bind(*range(5))
    except TypeError:
        return False
    return True


def _without_gradients(update: Callable[..., None]) -> Callable[..., None]:
    """Let a method `update(self, trace, error, targets)`, which has no use for gradients, be called with them."""

    @functools.wraps(update)
    def called(self, trace, error, targets, gradients=None):
        update(self, trace, error, targets)

    return called


def repeat(gradients: Gradients, lead: tuple[int, ...]) -> Gradients:
    """Give gradients that are the same in every draw the leading dimension of the draws, without copying."""
    return {name: g.expand(*lead, *g.shape) for name, g in gradients.items()} if lead else gradients
