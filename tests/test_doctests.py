"""The examples in docstrings of public functions, executed."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["methods.losses", "methods.thresholds", "benchmarks.training.metrics"])
def test_examples_of(name):
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0, "see the output"
    with_examples = {test.name for test in doctest.DocTestFinder().find(module) if test.examples}
    functions = {
        f"{name}.{key}"
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", "") == name
    }
    assert functions <= with_examples, f"without an example: {sorted(functions - with_examples)}"
