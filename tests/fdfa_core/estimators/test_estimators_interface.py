"""What the base class asks of a method and gives to it: `update` with gradients, options by annotation, `jacobian_average`."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt
from pydantic import Field

from fdfa_core.errors import InvalidInput, Unsupported
from fdfa_core.estimators import available_estimators, estimator_class, make_estimator
from fdfa_core.estimators.averaged import GradientAverage
from fdfa_core.estimators.direct_feedback import DirectFeedbackAlignment
from fdfa_core.estimators.forward_feedback import ForwardDirectFeedbackAlignment
from fdfa_core.linearisation.factored import dense
from fdfa_core.signatures import REQUIRED, check_options, checked, options_of
from toys import make_batch, make_toy


@pytest.fixture
def net():
    return make_toy("fc")


class Old(DirectFeedbackAlignment):
    """Has the `update` of three arguments."""

    name, stateful, calls = "old", True, 0

    def update(self, trace, error, targets):
        """Count, and let the base class have its turn."""
        self.calls += 1
        super().update(trace, error, targets)


class New(DirectFeedbackAlignment):
    """Keeps what `update` is given."""

    name, stateful, given = "new", True, ()

    def update(self, trace, error, targets, gradients):
        """Keep the gradients."""
        self.given = (*self.given, gradients)


class Asking(New):
    """Needs gradients."""

    needs_gradients = True


def test_an_update_without_gradients_goes_on_working(net):
    estimator, (x, y) = Old(net), make_batch(net)
    estimator.backward(x, y)
    estimator.advance(x, y)
    assert estimator.calls == 2


def test_an_update_without_gradients_is_advanced_beneath_an_average_of_gradients(net):
    class Averaged(GradientAverage, Old):
        """Averages the gradients of a method that has no use for them."""

        name = "old-averaged"

    estimator, (x, y) = Averaged(net), make_batch(net)
    estimator.backward(x, y)
    estimator.advance(x, y)
    assert estimator.calls == estimator.averaged == 2


def test_an_update_without_gradients_is_refused_above_a_method_that_needs_them():
    with pytest.raises(InvalidInput, match=r"Careless\.update: got 'a method without gradients'.*targets, gradients\)"):

        class Careless(GradientAverage, DirectFeedbackAlignment):
            """Would lose the gradients that the average needs."""

            def update(self, trace, error, targets):
                """Hand on too little."""
                super().update(trace, error, targets)


@pytest.mark.parametrize("cls", [New, Asking])
def test_update_is_given_the_gradients_that_backward_wrote(net, cls):
    estimator = cls(net)
    estimator.backward(*make_batch(net))
    (given,) = estimator.given
    assert given.keys() == dict(net.named_parameters()).keys()
    assert all(torch.equal(given[name], p.grad) for name, p in net.named_parameters())


def test_advance_makes_gradients_only_for_a_method_that_needs_them(net):
    x, y = make_batch(net)
    idle, asking = New(net), Asking(net, replicas=3)
    idle.advance(x, y)
    asking.advance(x, y)
    assert idle.given == (None,)
    assert {len(dense(g)) for g in asking.given[0].values()} == {3}


def test_annotated_options_are_checked_before_the_constructor_begins(net):
    class Annotations(DirectFeedbackAlignment):
        """Annotates its options and checks none."""

        def __init__(self, net, *, slope: Annotated[float, Gt(0)] = 1.0, how: Literal["up", "down"] = "up", any=None, **common):
            super().__init__(net, **common)

    Annotations(net, slope=1, how="down", any=object())
    for options, message in (
        ({"slope": 0.0}, "slope: got 0.0; accepted: a finite number .*greater than 0"),
        ({"how": "left"}, "how: got 'left'; accepted: 'up' or 'down'"),
        ({"site": "middle"}, "site: got 'middle'"),  # of a base class
    ):
        with pytest.raises(InvalidInput, match=message):
            Annotations(net, **options)


def test_every_option_of_every_method_is_annotated():
    bare = {
        (name, option.name)
        for name in available_estimators()
        if estimator_class(name).__module__.startswith("fdfa_core.")
        for option in estimator_class(name).options().values()
        if option.annotation is Any
    }
    assert bare == set()


def test_every_default_is_admitted_by_its_own_annotation():
    for name in available_estimators():
        for option in estimator_class(name).options().values():
            option.check(option.default)


def test_an_estimator_can_be_copied_and_pickled(net):
    estimator, (x, y) = make_estimator("fdfa", net, feedback_lr=0.1), make_batch(net)
    estimator.backward(x, y)
    assert all(torch.equal(a, b) for a, b in zip(copy.deepcopy(estimator).feedback, estimator.feedback, strict=True))
    assert type(pickle.loads(pickle.dumps(estimator.responses))) is type(estimator.responses)


@pytest.mark.parametrize("joint", [True, False, "cyclic"])
@pytest.mark.parametrize("warmup", [True, False])
def test_feedback_moves_by_the_weight_that_the_method_states(net, joint, warmup):
    estimator, (x, y) = make_estimator("fdfa", net, feedback_lr=0.3, joint=joint, warmup=warmup), make_batch(net)
    for step in range(1, 8):
        for b in estimator.feedback:
            b.fill_(1e6)  # so large that a step's D is lost beside it: what is left is 1 − the weight
        estimator.advance(x, y)
        left = min(float(b.mean()) for b in estimator.feedback) / 1e6
        assert left == pytest.approx(1 - estimator.weight(step), abs=1e-3)


def test_a_method_says_whether_its_feedback_is_an_average_of_jacobians(net):
    average = make_estimator("fdfa", net, feedback_lr=0.5, site="pre", warmup=True).jacobian_average()
    assert average.site == "pre" and [average.weight(t) for t in (1, 2, 3)] == [1, 0.5, 0.5]
    for name in available_estimators():
        if name != "fdfa" and estimator_class(name).__module__.startswith("fdfa_core."):
            assert make_estimator(name, net).jacobian_average() is None


@pytest.mark.parametrize("options", [{"feedback_rule": "adam"}, {"joint": "cyclic"}], ids=str)
def test_feedback_that_could_be_an_average_and_is_none_is_refused_with_the_remedy(net, options):
    with pytest.raises(Unsupported, match='feedback_rule = "momentum" and joint = true or false'):
        ForwardDirectFeedbackAlignment(net, **options).jacobian_average()


# --- What a signature says of an option is what is checked ---------------------------------------------------------


if TYPE_CHECKING:
    from nowhere import Unknown

Count = Annotated[int, Field(ge=1, description="a positive integer")]


def first(net, *, size: Count, rate: float = 0.5, how: Literal["a", "b"] = "a", free="x", later: Unknown = 1, seed: int = 0):
    """Has options of every kind."""


def second(net, *, rate: Annotated[float, Ge(1)] | None = None, size=3, joint: bool | Literal["cyclic"] = True):
    """Overrides a default, an annotation, and adds an option."""


def test_options_are_the_keyword_only_arguments_with_their_defaults():
    found = {option.name: option.default for option in options_of(first).values()}
    assert found == {"size": REQUIRED, "rate": 0.5, "how": "a", "free": "x", "later": 1, "seed": 0}


def test_the_last_function_has_the_last_word_and_keeps_an_annotation_that_it_does_not_repeat():
    both = options_of(first, second)
    assert both["rate"].default is None and both["size"].default == 3
    with pytest.raises(InvalidInput, match="size: got 0; accepted: a positive integer"):
        both["size"].check(0)
    with pytest.raises(InvalidInput, match="rate: got 0.5"):
        both["rate"].check(0.5)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Count, 0, r"x: got 0; accepted: a positive integer\."),
        (Count, 2.0, "accepted: a positive integer"),
        (Count, True, "got True; accepted: a positive integer"),
        (float, "1", "got '1'; accepted: a finite number"),
        (float, True, "got True"),
        (float, float("nan"), "got nan; accepted: a finite number"),
        (float, float("inf"), "got inf"),
        (bool, 1, "got 1; accepted: True or False"),
        (str, 1, "accepted: text"),
        (Literal["a", "b"], "c", "got 'c'; accepted: 'a' or 'b'"),
        (bool | Literal["cyclic"], 1, "got 1; accepted: True or False or 'cyclic'"),
        (bool | Literal["cyclic"], "sometimes", "accepted: True or False or 'cyclic'"),
        (Annotated[int, Ge(3)], 2, r"accepted: an integer \(an int\) \(a number greater than or equal to 3\)"),
        (Count | None, 0, "accepted: a positive integer or None"),
    ],
)
def test_a_value_that_the_annotation_does_not_admit_is_refused_in_its_words(annotation, value, message):
    with pytest.raises(InvalidInput, match=message):
        checked("x", annotation, value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(Count, 1), (float, 1), (float, 0.5), (bool, False), (bool | Literal["cyclic"], "cyclic"), (Count | None, None)],
)
def test_a_value_that_the_annotation_admits_is_returned_as_it_is(annotation, value):
    returned = checked("x", annotation, value)
    assert returned is value


def test_what_the_signature_does_not_say_is_not_checked():
    check_options(options_of(first), {"free": object(), "later": object(), "unheard-of": 1})


def test_a_default_is_given_as_an_example():
    with pytest.raises(InvalidInput, match="seed: got 'zero'; accepted: an integer.*, such as 0"):
        check_options(options_of(first), {"seed": "zero"})
