"""Nothing malformed at temperature 1.5, and a server that stays orderly among unruly clients."""

import pytest
from malformed import check_generations

import localoss


@pytest.fixture(scope="module")
def engine(model):
    return localoss.load(model("harmony"), context_tokens=1024, threads=1)


@pytest.mark.parametrize("count", [50, pytest.param(2000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("bonus", [0.0, 16.0], ids=["noise", "noise that ends"])
def test_no_generation_is_malformed(engine, count, bonus):
    seen = check_generations(engine, count, bonus=bonus)
    print(f"\n{count} generations: {seen}")
    assert sum(seen.values()) == count
    assert {"tool_calls", "structured", "length"} <= set(seen)
