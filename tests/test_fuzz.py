"""Damaged and hostile inputs of every loader: taken, or refused with one sentence.

`scripts/fuzz.py` runs the same loaders for longer, and under a watch that ends a process.
"""

import random
import time

import fuzz_seeds
import pytest
from fuzz_targets import BY_NAME, TARGETS, check, damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS = 5.0
ODD = 'images of any size'  # may take a second: for the long run only


def mutations(target):
    """How many, so that all loaders together take half a minute."""
    return 2000 if target.share == 10 else 200


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@pytest.mark.parametrize('name', BY_NAME)
def test_seeds_are_taken(folder, name):
    target = BY_NAME[name]
    if target.seeds is not fuzz_seeds.noise:
        assert all(check(target, seed, folder) for seed in target.seeds())


@pytest.mark.parametrize('name', [target.name for target in TARGETS if target.name != ODD])
def test_damaged_inputs_end_in_a_sentence(folder, name):
    target = BY_NAME[name]
    seeds, outcomes = target.seeds(), []

    @settings(
        max_examples=mutations(target),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64 - 1))
    def run(number):
        began = time.monotonic()
        outcomes.append(check(target, damaged(target, seeds, random.Random(number)), folder))
        assert time.monotonic() - began < SECONDS

    run()
    assert len(outcomes) > mutations(target) / 2
    if name != 'scan cache':  # which tells nothing where it is damaged, and refuses nothing
        assert not all(outcomes)
