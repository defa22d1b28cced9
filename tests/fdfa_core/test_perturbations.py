"""Perturbation laws have mean zero, identity covariance and the kurtosis that they name; designs keep each row's law."""

import math

import pytest
import torch

from fdfa_core import fully_connected
from fdfa_core.errors import InvalidInput, UnknownName
from fdfa_core.estimators import make_estimator
from fdfa_core.perturbations import DESIGNS, LAWS, LowRank, design_sample, make_law

DRAWS, DIMENSION = 200_000, 5
SIGMAS = 5  # a correct law fails one of the entries below once in a thousand fresh seeds


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moments(v):
    """Means and standard errors over rows."""
    return v.mean(0), v.std(0) / math.sqrt(len(v))


def within(found, expected):
    mean, se = moments(found)
    return bool(((mean - expected).abs() <= SIGMAS * se + 1e-12).all())


@pytest.mark.parametrize("law", LAWS)
def test_mean_is_zero(law):
    assert within(make_law(law).sample((DRAWS, DIMENSION), generator=generator(), dtype=torch.float64), 0)


@pytest.mark.parametrize("law", LAWS)
def test_covariance_is_the_identity(law):
    v = make_law(law).sample((DRAWS, DIMENSION), generator=generator(), dtype=torch.float64)
    assert within((v[:, :, None] * v[:, None, :]).flatten(1), torch.eye(DIMENSION, dtype=torch.float64).flatten())


@pytest.mark.parametrize("law", LAWS)
def test_kurtosis_is_as_stated(law):
    law = make_law(law)
    v = law.sample((DRAWS, DIMENSION), generator=generator(), dtype=torch.float64)
    assert within(v**4, law.kurtosis_in(DIMENSION))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("law", LAWS)
def test_shape_and_type_are_those_asked_for(law, dtype):
    v = make_law(law).sample((2, 3, 4), generator=generator(), dtype=dtype)
    assert (v.shape, v.dtype) == ((2, 3, 4), dtype)


@pytest.mark.parametrize("law", LAWS)
def test_draws_come_from_the_generator_alone(law):
    before = torch.random.get_rng_state()
    one, other = (make_law(law).sample((3, 4), generator=generator(7), dtype=torch.float64) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_matrices_have_identity_covariance_the_stated_kurtosis_and_rank(rank):
    law = LowRank(rank)
    v = law.sample_parameters((DRAWS,), [(4, 2, 2), (3,)], generator(), torch.float64)
    assert v.shape == (DRAWS, 19) and within(v, 0)
    assert within((v[:, :, None] * v[:, None, :]).flatten(1), torch.eye(19, dtype=torch.float64).flatten())
    assert within(v[:, :16] ** 4, law.kurtosis) and within(v[:, 16:] ** 4, 3)
    assert (torch.linalg.matrix_rank(v[:100, :16].view(100, 4, 4)) == rank).all()


def test_low_rank_directions_go_by_name_and_are_of_weights_alone():
    assert make_law("low-rank-3").rank == 3
    with pytest.raises(InvalidInput, match="rank: got 0; accepted: a positive integer"):
        make_law("low-rank-0")
    net = fully_connected([3, 4, 2], seed=0)
    x, y = torch.ones(2, 3), torch.tensor([0, 1])
    with pytest.raises(InvalidInput, match="perturbation: got 'low-rank-3'.*for weights, in fg-w and lg-fg-w"):
        make_estimator("fg-a", net, perturbation="low-rank-3").backward(x, y)


@pytest.mark.parametrize("design", DESIGNS)
def test_each_row_of_a_design_has_identity_covariance(design):
    shape = (DRAWS // 4, 4, DIMENSION)
    v = design_sample(make_law("gaussian"), design, shape, generator=generator(), dtype=torch.float64)
    for row in v.unbind(1):
        assert within((row[:, :, None] * row[:, None, :]).flatten(1), torch.eye(DIMENSION, dtype=torch.float64).flatten())
        assert within(row, 0)


@pytest.mark.parametrize("rows", [3, 5, 12])
def test_orthogonal_rows_are_orthogonal_in_blocks(rows):
    v = design_sample(make_law("gaussian"), "orthogonal", (2, rows, 5), generator=generator(), dtype=torch.float64)
    for block in v.split(5, dim=1):
        gram = 5 * torch.eye(block.shape[1], dtype=torch.float64)
        torch.testing.assert_close(block @ block.mT, gram.expand(2, -1, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [4, 5])
def test_antithetic_rows_are_negatives_of_the_first_half(rows):
    v = design_sample(make_law("rademacher"), "antithetic", (2, rows, 3), generator=generator(), dtype=torch.float64)
    half = (rows + 1) // 2
    assert v.shape == (2, rows, 3)
    assert torch.equal(v[:, half:], -v[:, : rows - half])


def test_orthogonal_design_needs_an_isotropic_law():
    with pytest.raises(InvalidInput, match='perturbation: got .rademacher.; accepted: "gaussian" or "sphere"'):
        design_sample(make_law("rademacher"), "orthogonal", (3, 3), generator=generator(), dtype=torch.float64)


def test_unknown_design_is_named():
    with pytest.raises(InvalidInput, match="directions: got 'diagonal'; accepted: 'independent' or 'antithetic'"):
        design_sample(make_law("gaussian"), "diagonal", (3, 3), generator=generator(), dtype=torch.float64)


def test_unknown_law_is_named():
    with pytest.raises(UnknownName, match="perturbation: got 'cauchy'; accepted: one of gaussian, rademacher, sphere, low"):
        make_law("cauchy")


def test_an_object_that_is_no_law_is_refused():
    with pytest.raises(InvalidInput, match=r"this lacks \['name', 'kurtosis', 'sample'\]"):
        make_law(3)
