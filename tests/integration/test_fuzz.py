"""Seeded nonsense for the readers of rows, pictures, configs, score files and server bodies."""

import warnings

import pytest

from tests.fuzz import READERS, fuzz

NUM_CASES = 2000  # `python -m tests.fuzz --cases 100000` runs more of the same


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn about what is then refused
        return fuzz(0, NUM_CASES, tmp_path_factory.mktemp("fuzz"))


def test_only_the_projects_own_errors_come_out(result):
    _, faults = result
    assert faults == {}


def test_every_reader_accepts_some_cases_and_refuses_others(result):
    outcomes, _ = result
    for reader in READERS:
        assert outcomes[f"{reader.__name__} accepted"] > 20
        assert outcomes[f"{reader.__name__} refused"] > 20
