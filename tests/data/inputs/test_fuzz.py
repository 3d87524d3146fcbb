"""Damaged manifests and patterns: taken, or refused with one sentence."""

import fuzz_suite
import pytest

NAMES = fuzz_suite.names('csv', 'jsonl', 'pattern')


@pytest.mark.parametrize('name', NAMES)
def test_seeds_are_taken(tmp_path, name):
    fuzz_suite.check_seeds(name, tmp_path)


@pytest.mark.parametrize('name', NAMES)
def test_damaged_inputs_end_in_a_sentence(tmp_path, name):
    fuzz_suite.check_damaged(name, tmp_path)
