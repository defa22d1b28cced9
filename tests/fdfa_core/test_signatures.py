"""What a signature says of an option is what is checked, and the error says it in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import pytest
from annotated_types import Ge
from pydantic import Field

from fdfa_core.errors import InvalidInput
from fdfa_core.signatures import REQUIRED, check_options, checked, options_of

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
