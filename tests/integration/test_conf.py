"""Every file under conf/ composes and passes every check."""

import pytest

from tests.unit.config.test_compose import CONF, config_of

FILES = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name != "hydra")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_composes_and_passes_every_check(path):
    name = ("model.name=ORG/NAME",) if path.stem == "hub" else ()  # which the user gives
    config_of(f"{path.parent.name}={path.stem}", *name)
