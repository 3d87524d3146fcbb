"""Paths of strengths go on while their best is at an end."""

import numpy as np
import pytest

from tlflax.models.linear.strengths import MOST_EXTENSIONS, choose, extended


def walk(optimum, strengths=(1.0, 0.1, 0.01)):
    """Walks a path whose best strength is the one closest to the optimum."""
    seen = []
    for strength in extended(
        strengths, lambda: int(np.argmin(np.abs(np.log(seen) - np.log(optimum))))
    ):
        seen.append(strength)
    return seen


@pytest.mark.parametrize(
    ('optimum', 'expected', 'logged'),
    [
        (0.1, [1, 0.1, 0.01], []),
        (1e-4, [1, 0.1, 0.01, 1e-3, 1e-4, 1e-5], ['info']),
        (10, [1, 0.1, 0.01, 10, 100], ['info']),
    ],
    ids=['inside', 'weaker', 'stronger'],
)
def test_path_ends_one_beyond_the_best(optimum, expected, logged, said):
    np.testing.assert_allclose(walk(optimum), expected)
    assert [line.split()[0] for line in said] == logged


def test_path_has_a_limit_and_says_so(said):
    assert len(walk(1e-30)) == 3 + MOST_EXTENSIONS
    (line,) = said
    assert line == 'warning the weakest strength of regularization is the best: 1e-08'


def test_strongest_of_those_that_are_about_the_best_is_chosen():
    assert choose([1.0, 0.1, 0.01, 10.0], [0.5, 0.301, 0.3, 0.302]) == 1
    assert choose([0.1, 1.0], [0.0, 0.0]) == 1
