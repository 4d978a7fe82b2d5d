"""Run and stage identities of the shipped grids are what they were; see `tests.plan.golden`."""

from __future__ import annotations

import json

import pytest

from tests.plan import golden


@pytest.mark.parametrize("name", golden.GRIDS)
def test_identities_are_those_of_the_results_that_exist(name):
    expected = json.loads(golden.FILE.read_text(encoding="utf-8"))[name]
    found = golden.summary(name)
    assert found["some"] == expected["some"]
    assert found == expected
