"""Tests in random order: ``python -m pytest -p tests.shuffled --shuffle 7``.

Modules are shuffled, and the tests inside each; modules stay together, so that their fixtures are made once.
"""

from __future__ import annotations

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--shuffle", type=int, default=None, metavar="SEED", help="run tests in the random order of SEED")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle, the same way in every process of xdist."""
    seed = config.getoption("--shuffle")
    if seed is None:
        return
    generator = random.Random(seed)
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    names = list(modules)
    generator.shuffle(names)
    for name in names:
        generator.shuffle(modules[name])
    items[:] = [item for name in names for item in modules[name]]
