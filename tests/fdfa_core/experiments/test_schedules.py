import pytest

from fdfa_core.experiments import schedules
from fdfa_core.experiments.tables import At, Epochs, Every, FirstAndLast, Geometric


def steps(due, below=40):
    return [step for step in range(below) if due(step)]


def test_every():
    assert steps(schedules.every(10)) == [0, 10, 20, 30]


@pytest.mark.parametrize("first, ratio, expected", [(1, 2, [1, 2, 4, 8, 16, 32]), (3, 1.5, [3, 4, 7, 10, 15, 23, 34])])
def test_geometric(first, ratio, expected):
    assert steps(schedules.geometric(first, ratio)) == expected


def test_geometric_steps_that_round_to_the_same_number_are_one_step():
    assert steps(schedules.geometric(1, 1.2), 8) == [1, 2, 3, 4, 5, 6, 7]


CONFIGURED = {
    "every": (Every(kind="every", k=7), [0, 7, 14]),
    "geometric": (Geometric(kind="geometric"), [1, 2, 4, 8, 16]),
    "at": (At(kind="at", steps=[3, 5]), [3, 5]),
    "epochs": (Epochs(kind="epochs", every=2), [0, 10]),
    "first and last": (FirstAndLast(kind="first_and_last"), [0, 19]),
    "last besides": (At(kind="at", steps=[3], last=True), [3, 19]),
}


@pytest.mark.parametrize("config, expected", CONFIGURED.values(), ids=CONFIGURED)
def test_built_from_configuration(config, expected):
    assert steps(schedules.build(config, steps_per_epoch=5, last=19), 20) == expected
