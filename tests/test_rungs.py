"""What a rung's folder is called is what its name is read as."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from sharpen.advisor import METHODS, Variant
from sharpen.store.rungs import RungName


@pytest.mark.parametrize("folder", ["", "sft", "-sft", "001", "001-", "rungs/001-sft", "001-sft\n", ".001-sft.training", "x1-sft"])
def test_what_is_no_rungs_name_is_none(folder: str) -> None:
    assert RungName.of(folder) is None


def test_a_name_is_read_as_it_was_made() -> None:
    ways = [("", 0), *product(get_args(Variant), (1, 9))]
    for number, method, (way, retry), control in product((0, 7, 1000), ("base", *METHODS), ways, (False, True)):
        name = RungName(number, method, retry, way, control)
        assert RungName.of(name.stage.removeprefix("rungs/")) == name
    assert RungName(2, "rejection-sampling", 1, "more-samples").stage == "rungs/002-rejection-sampling-retry-1-more-samples"
    assert RungName(3, "distillation", control=True).stage == "rungs/003-distillation-control"


def test_what_only_looks_like_a_retry_or_a_control_is_a_method() -> None:
    assert RungName.of("001-retry-of-mine") == RungName(1, "retry-of-mine")
    assert RungName.of("001-retry-1-hints") == RungName(1, "retry-1-hints")
    assert RungName.of("001-control") == RungName(1, "control")
