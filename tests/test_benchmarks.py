"""Benchmarks run for minutes or hours, and no other test runs them all: at least each can be loaded against the package as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import BENCHMARKS, benchmark


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_loads(name: str) -> None:
    loaded = benchmark(name)
    assert loaded.__file__ is not None and Path(loaded.__file__).parent == BENCHMARKS
