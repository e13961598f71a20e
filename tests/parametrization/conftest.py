"""The settings beside the tests of models are imported by name."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))


@pytest.fixture
def registering(monkeypatch):
    """What a test registers is forgotten after it."""
    module = importlib.import_module("lab.parametrization.scales")  # the package has a function of that name
    for name in module.known():
        module.find(name)  # built-in ones register at their import, which happens once
    monkeypatch.setattr(module, "_PARAMETRIZATIONS", dict(module._PARAMETRIZATIONS))
