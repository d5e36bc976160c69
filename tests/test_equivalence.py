"""Filtered SFT as a policy gradient, on a model whose every trajectory can be enumerated. The claim and the figures: docs/what-rl-adds.md."""

from __future__ import annotations

from conftest import benchmark


def test_training_on_what_passes_follows_the_pass_rate() -> None:
    found = benchmark("equivalence").main(seed=0, n=2, draws=())
    for weighting in ("mean_pass_rate", "log_pass_rate"):
        assert abs(found[weighting]["cosine"] - 1) < 1e-9 and abs(found[weighting]["length_ratio"] - 1) < 1e-6, weighting
    for bent in ("log_pass_rate beside the mean pass rate", "mean_pass_rate with dedup", "mean_pass_rate sampled at T = 1.5"):
        assert found[bent]["cosine"] < 0.999, bent
