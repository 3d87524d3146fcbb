"""What the tests of each room do with their loaders of outside input; see `fuzz_targets`.

`scripts/fuzz.py` runs the same loaders for longer, and under a watch that ends a process.
"""

import random
import time

import fuzz_seeds
from fuzz_targets import BY_NAME, TARGETS, check, damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS = 5.0
FAST, SLOW = 2000, 200  # inputs of a loader that takes a millisecond, and of the others


def names(*beginnings):
    """The loaders whose names begin like this."""
    return [target.name for target in TARGETS if target.name.startswith(beginnings)]


def check_seeds(name, folder):
    """Valid inputs are taken."""
    target = BY_NAME[name]
    if target.seeds is not fuzz_seeds.noise:  # of which any value is made
        assert all(check(target, seed, folder) for seed in target.seeds())


def check_damaged(name, folder):
    """Damaged inputs are taken or refused with one sentence, and soon; some are refused."""
    target = BY_NAME[name]
    seeds, outcomes = target.seeds(), []
    wanted = FAST if target.share == 10 else SLOW
    check(target, seeds[0], folder)  # imports and compiles what it needs

    @settings(
        max_examples=wanted,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64 - 1))
    def run(number):
        began = time.process_time()  # of a machine that may be busy
        outcomes.append(check(target, damaged(target, seeds, random.Random(number)), folder))
        assert time.process_time() - began < SECONDS

    run()
    assert len(outcomes) >= wanted
    if name != 'scan cache':  # which tells nothing where it is damaged, and refuses nothing
        assert not all(outcomes)
