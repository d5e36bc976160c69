"""The advisor's first form: every refusal, and the three outcomes of a gain."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sharpen.advisor import METHODS, advise, after_sampling, judge_forgetting, judge_gain
from sharpen.records import Gain, Interval, Measurements

READY = Measurements(demonstrations=10, demonstrations_passing=10, verifier="v", verifier_exact=True, gold_passes=True, noop_fails=True)


@pytest.mark.parametrize("method", METHODS)
def test_with_everything_in_place_each_method_may_be_tried(method: str) -> None:
    assert advise(method, READY).outcome == "proceed"  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["rejection-sampling", "expert-iteration"])
@pytest.mark.parametrize(
    ("lacking", "why"),
    [
        ({"verifier": None}, "no verifier: without filtering this is SFT on average behaviour"),
        ({"gold_passes": False}, "fails gold solutions"),
        ({"noop_fails": False}, "passes empty or off-task answers"),
    ],
)
def test_sampling_methods_are_refused_without_a_verifier_that_can_be_trusted(method: str, lacking: dict[str, object], why: str) -> None:
    decision = advise(method, replace(READY, **lacking))  # type: ignore[arg-type]
    assert decision.outcome == "refuse"
    assert why in decision.reasons[0]


@pytest.mark.parametrize("method", ["few-shot", "sft"])
@pytest.mark.parametrize(
    ("lacking", "why"), [({"demonstrations": 0}, "no demonstrations"), ({"demonstrations_passing": 0}, "none of the 10")]
)
def test_imitation_is_refused_without_anything_to_imitate(method: str, lacking: dict[str, object], why: str) -> None:
    decision = advise(method, replace(READY, **lacking))  # type: ignore[arg-type]
    assert decision.outcome == "refuse"
    assert why in decision.reasons[0]


def test_no_success_in_n_samples_on_every_task_is_refused() -> None:
    seen = replace(READY, samples_per_task=8, tasks_sampled=50, tasks_solved=0, tasks_mixed=0)
    decision = after_sampling("rejection-sampling", seen)
    assert decision.outcome == "refuse"
    assert "8 tries on each of 50 tasks hold no success" in decision.reasons[0] and "give hints" in decision.reasons[0]
    (why,) = after_sampling("rejection-sampling", seen, hinted=True).reasons
    assert "hold no success, nor did showing the solution" in why and "easier tasks" in why and "hints" not in why
    assert after_sampling("rejection-sampling", replace(seen, tasks_solved=1, tasks_mixed=1)).outcome == "proceed"


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.01, 0.2, "keep"),
        (-0.2, -0.01, "worse"),
        (-0.02, 0.02, "plateau"),
        (-0.05, 0.2, "undecided"),
        (float("nan"), float("nan"), "undecided"),
    ],
)
def test_three_outcomes_and_a_loss(low: float, high: float, outcome: str) -> None:
    interval = Interval(value=(low + high) / 2, low=low, high=high, n=50)
    decision = judge_gain(Gain(base="a", other="b", printed=interval, deciding=interval, smallest_visible=0.1), 0.03)
    assert decision.outcome == outcome
    assert decision.gain is not None


@pytest.mark.parametrize(("high", "drop", "outcome"), [(-0.06, 0.0, "worse"), (-0.06, 0.1, "keep"), (0.02, 0.0, "keep")])
def test_a_rung_that_surely_forgets_is_rolled_back(high: float, drop: float, outcome: str) -> None:
    def gain(low: float, high: float) -> Gain:
        interval = Interval(value=(low + high) / 2, low=low, high=high, n=60)
        return Gain(base="rungs/000-base", other="rungs/002-sft", printed=interval, deciding=interval, smallest_visible=0.1)

    kept = judge_gain(gain(0.1, 0.2), 0.03)
    decision = judge_forgetting(kept, gain(-0.2, high), drop)
    assert decision.outcome == outcome and decision.gain == kept.gain
    assert "off-task panel" in decision.reasons[-1] and "since 000-base" in decision.reasons[-1]


def test_a_success_in_a_later_wave_is_enough_to_go_on_and_is_not_counted_as_a_rate() -> None:
    seen = replace(READY, samples_per_task=2, tasks_sampled=50, tasks_solved=0, tasks_mixed=0, solved_later=3)
    decision = after_sampling("rejection-sampling", seen)
    assert decision.outcome == "proceed"
    assert decision.reasons == ("2 tries on each of 50 tasks: 0 solved at least once, 0 of them not always; later waves solved 3 more",)
