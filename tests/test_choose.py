"""The choice: each sentence of the essay's "How to choose" and "When NOT to use these" is a case, and so is each bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

from sharpen.advisor import RULES, SUPERVISED, AdvisorSettings, choose, ended, forecast, tried, variants
from sharpen.errors import SettingsError
from sharpen.records import Action, Advice, Decision, Gain, Goal, Interval, Measurements, Option, Purity, TeacherSeen, Tried
from sharpen.stats import clopper_pearson, purity_bound


def rate(value: float, half: float = 0.05, n: int = 100) -> Interval:
    return Interval(value=value, low=max(value - half, 0.0), high=min(value + half, 1.0), n=n)


def gain(value: float, half: float = 0.02) -> Gain:
    at = Interval(value=value, low=value - half, high=value + half, n=100)
    return Gain(base="a", other="b", printed=at, deciding=at, smallest_visible=1.4 * half)


def round_(outcome: str, value: float, method: str = "expert-iteration", half: float = 0.02) -> Tried:
    return Tried(method=method, outcome=outcome, gain=gain(value, half))  # type: ignore[arg-type]


VERIFIED = Measurements(verifier="v", verifier_exact=True, gold_passes=True, noop_fails=True, rate=rate(0.3))
SAMPLED = replace(VERIFIED, samples_per_task=8, tasks_sampled=50, tasks_solved=30, tasks_mixed=25, pass_n=rate(0.6), rewarded_in_part=0)
DEMONSTRATED = replace(VERIFIED, demonstrations=40, demonstrations_passing=40, demonstration_rate=rate(1.0, 0.09))
STRONG = TeacherSeen(name="big", terms="allowed", rate=rate(0.8), gain=gain(0.5))
WORKED = round_("keep", 0.1, "rejection-sampling")
PLATEAU = (WORKED, round_("plateau", 0.0), round_("plateau", 0.005))
GOAL: dict[str, Any] = {"goal": Goal(value=0.9), "goal_rate": rate(0.4)}


def of(advice: Advice, action: Action) -> Option:
    return next(option for option in advice.options if option.action == action)


# ---------------------------------------------------------------- how to choose


@pytest.mark.parametrize(
    ("sentence", "seen", "action"),
    [
        ("SFT — you already have good trajectories.", DEMONSTRATED, "sft"),
        ("SFT, also where nothing can judge them", Measurements(demonstrations=40), "sft"),
        ("Rejection sampling — you have a verifier and a model that sometimes succeeds.", SAMPLED, "rejection-sampling"),
        ("the default bootstrap: once demonstrations are used up", replace(SAMPLED, demonstrations=40, demonstrations_passing=40,
            demonstration_rate=rate(1.0), tried=(Tried(method="few-shot", outcome="plateau"), round_("keep", 0.1, "sft"))), "rejection-sampling"),
        ("Expert iteration — rejection sampling worked once and is still improving round-over-round.", replace(SAMPLED, tried=(WORKED,)), "expert-iteration"),
        ("Compound it", replace(SAMPLED, tried=(WORKED, round_("keep", 0.05))), "expert-iteration"),
        ("Distillation — a strong teacher exists and you need it cheaper or smaller.", replace(VERIFIED, teacher=STRONG), "distillation"),
        ("RL — only after the above plateau and the residual gap justifies the instability and infra.", replace(SAMPLED, tried=PLATEAU, **GOAL), "rl"),
        ("producible but rare: RL", replace(SAMPLED, tried=PLATEAU, teacher=replace(STRONG, gain=gain(-0.1)), **GOAL), "rl"),
        ("rewarded in part: RL", replace(SAMPLED, tasks_solved=0, tasks_mixed=0, pass_n=rate(0.0), rewarded_in_part=30, rate=rate(0.0), **GOAL), "rl"),
        ("never produced, nothing in the reward to climb",
            replace(SAMPLED, tasks_solved=0, tasks_mixed=0, pass_n=rate(0.0), rate=rate(0.0), **GOAL), "curriculum"),
    ],
)  # fmt: skip
def test_how_to_choose(sentence: str, seen: Measurements, action: str) -> None:
    assert choose(seen).recommendation.action == action, sentence
    assert choose(seen).recommendation.standing == "advised"


@pytest.mark.parametrize("action", ["rejection-sampling", "expert-iteration"])
@pytest.mark.parametrize(
    ("lacking", "why"),
    [
        ({"verifier": None}, "without filtering this is SFT on average behaviour"),
        ({"gold_passes": False}, "fails gold solutions"),
        ({"noop_fails": False}, "passes empty or off-task answers"),
    ],
)
def test_sampling_methods_are_useless_without_a_trusted_verifier(action: Action, lacking: dict[str, Any], why: str) -> None:
    option = of(choose(replace(SAMPLED, tried=(WORKED,), **lacking)), action)
    assert option.standing == "refused" and why in option.reason.says and option.changes


def test_distillation_is_the_wrong_tool_where_no_model_shows_the_behaviour() -> None:
    helpless = TeacherSeen(name="big", terms="allowed", rate=Interval(value=0.0, low=0.0, high=0.1, n=30), gain=gain(0.0))
    option = of(choose(replace(VERIFIED, teacher=helpless)), "distillation")
    assert option.standing == "refused" and "nothing to copy" in option.reason.says


def test_none_can_exceed_the_best_trajectory_they_were_trained_on() -> None:
    seen = replace(SAMPLED, tried=PLATEAU, goal=Goal(value=0.95), goal_rate=rate(0.4))
    assert any("is over all that the model reaches in 8 tries" in note for note in choose(seen).notes)
    assert any("best-of-8 reaches 60.0%" in note for note in choose(seen).notes)


def test_imitation_has_a_ceiling() -> None:
    worse = replace(DEMONSTRATED, rate=rate(0.8), demonstration_rate=rate(0.4))
    option = of(choose(worse), "sft")
    assert option.standing == "refused" and "ceiling" in option.reason.says


@pytest.mark.parametrize(("terms", "standing"), [("forbidden", "refused"), ("unknown", "open"), ("allowed", "advised")])
def test_the_licence_is_settled_before_a_pipeline_is_built_on_it(terms: Any, standing: str) -> None:
    advice = choose(replace(VERIFIED, teacher=replace(STRONG, terms=terms)))
    assert of(advice, "distillation").standing == standing
    assert terms == "allowed" or "terms" in of(advice, "distillation").reason.measured


def test_rl_waits_for_every_supervised_method_and_for_a_goal() -> None:
    early = of(choose(replace(SAMPLED, **GOAL)), "rl")
    assert early.standing == "refused" and "rejection-sampling" in early.reason.measured
    aimless = choose(replace(SAMPLED, tried=PLATEAU))
    assert of(aimless, "rl").standing == "open" and aimless.recommendation.action != "rl"
    near = choose(replace(SAMPLED, tried=PLATEAU, goal=Goal(value=0.32), goal_rate=rate(0.3)))
    assert of(near, "rl").standing == "refused" and "no gap" in of(near, "rl").reason.says
    weak = choose(replace(SAMPLED, tried=(WORKED, round_("undecided", 0.02, half=0.1), round_("undecided", 0.02, half=0.1)), **GOAL))
    assert weak.recommendation.action == "measure", "rounds that may have gained are no plateau"


def test_a_goal_that_is_met_ends_it() -> None:
    assert choose(replace(SAMPLED, goal=Goal(value=0.2), goal_rate=rate(0.3))).recommendation.action == "ship"


@pytest.mark.parametrize(
    ("purity", "action"), [(None, "label"), ("open", "label"), ("clears", "rejection-sampling"), ("below", "curriculum")]
)
def test_a_verifier_that_is_not_exact_needs_labels_first(purity: str | None, action: str) -> None:
    share = purity_bound([(20, 20, 60)]) if purity else Interval(value=math.nan, low=math.nan, high=math.nan, n=0)
    known = Purity(rows=60, good=20, bad=0, unsure=0, share=share, bar=0.9, outcome=purity or "open", missing=9)  # type: ignore[arg-type]
    seen = replace(SAMPLED, verifier_exact=False, purity=known if purity else None)
    assert choose(seen).recommendation.action == action
    trusted = choose(replace(seen, trusted_unaudited=True))
    assert (trusted.recommendation.action == "rejection-sampling") == (purity != "below")
    assert any("nobody audited" in note for note in trusted.notes)


# ---------------------------------------------------------------- one page, every reason with its number


def test_every_reason_cites_a_measurement_and_a_threshold() -> None:
    for seen in (Measurements(), VERIFIED, SAMPLED, DEMONSTRATED, replace(SAMPLED, tried=PLATEAU, teacher=STRONG, **GOAL)):
        advice = choose(seen)
        for option in advice.options:
            assert option.reason.says and option.reason.measured and option.reason.threshold, option
        assert advice.recommendation in advice.options and advice.recommendation != advice.runner_up
        assert choose(seen) == advice
    with_interval = [option for option in choose(replace(SAMPLED, tried=PLATEAU, **GOAL)).options if option.standing == "advised"]
    assert all(option.reason.interval is not None for option in with_interval)


def test_every_action_has_a_rule_that_always_fires_or_stands_on_what_is_given() -> None:
    assert {rule.action for rule in RULES} >= set(SUPERVISED)
    for rule in RULES:
        assert rule.when, rule


def test_the_method_that_gains_most_for_its_cost_goes_first() -> None:
    both = replace(
        SAMPLED,
        demonstrations=40,
        demonstrations_passing=40,
        demonstration_rate=rate(1.0),
        tried=(Tried(method="few-shot", outcome="plateau"),),
    )
    cheap = choose(replace(both, costs={"sft": 1e3, "rejection-sampling": 1e5}))
    dear = choose(replace(both, costs={"sft": 1e7, "rejection-sampling": 1e3}))
    assert (cheap.recommendation.action, cheap.runner_up and cheap.runner_up.action) == ("sft", "rejection-sampling")
    assert dear.recommendation.action == "rejection-sampling"
    unpriced = choose(replace(both, teacher=STRONG, costs={"sft": 1e3, "rejection-sampling": 1e3}))
    assert unpriced.recommendation.action == "distillation", "what it takes is not known, so the gain alone decides"
    poor = choose(replace(both, costs={"sft": 1e3, "rejection-sampling": 1e5}, left=500.0))
    assert {of(poor, action).standing for action in ("sft", "rejection-sampling")} == {"refused"}
    assert "what is left to spend" in of(poor, "sft").reason.says


def test_a_forecast_has_an_interval_inside_what_is_possible() -> None:
    at = forecast("rejection-sampling", SAMPLED, AdvisorSettings())
    assert at is not None and -0.3 <= at.low <= at.value <= at.high <= 0.7
    assert forecast("rejection-sampling", VERIFIED, AdvisorSettings()) is None, "pass@n is not known"
    assert forecast("sft", replace(DEMONSTRATED, rate=None), AdvisorSettings()) is None


# ---------------------------------------------------------------- the pawl


def test_what_is_rolled_back_is_tried_in_other_ways_before_it_is_called_a_plateau() -> None:
    once = replace(SAMPLED, tried=(WORKED, round_("plateau", 0.0)))
    advice = choose(once)
    assert advice.recommendation.action == "retry" and ended(once, AdvisorSettings(), 0.03) == ""
    names = [name for name, _ in variants(once, AdvisorSettings())]
    assert names == ["hints", "more-samples", "negatives", "continue"]
    again = replace(SAMPLED, tried=(WORKED, replace(round_("plateau", 0.0), variant="hints")))
    assert [name for name, _ in variants(again, AdvisorSettings())] == ["more-samples", "negatives", "continue"]
    alike = replace(once, pass_n=rate(0.33), tasks_solved=50)
    assert [name for name, _ in variants(alike, AdvisorSettings())] == ["temperature", "negatives", "continue"]
    assert variants(replace(once, tasks_sampled=None), AdvisorSettings()) == ()


@pytest.mark.parametrize(("hintable", "named"), [(None, True), (0, False), (2, False), (15, True), (400, True)])
def test_hints_are_named_only_where_enough_could_be_shown(hintable: int | None, named: bool) -> None:
    seen = replace(SAMPLED, tried=(WORKED, round_("plateau", 0.0)), hintable=hintable)
    found = dict(variants(seen, AdvisorSettings()))
    assert ("hints" in found) == named
    if named and hintable is not None:
        assert found["hints"].measured.endswith(f"{min(hintable, 20)} of them with a solution to show")


@pytest.mark.parametrize(
    ("tried", "called"),
    [
        (PLATEAU, "plateau"),
        ((WORKED, round_("plateau", 0.0)), ""),
        ((WORKED, round_("undecided", 0.02, half=0.1), round_("plateau", 0.0)), "undecided"),
        ((WORKED, round_("plateau", 0.0), round_("keep", 0.1)), ""),
        ((round_("worse", -0.1, "rejection-sampling"), round_("worse", -0.1)), "plateau"),
        ((*PLATEAU, round_("keep", 0.2, "distillation")), ""),
    ],
)
def test_a_weak_test_is_not_a_plateau(tried: tuple[Tried, ...], called: str) -> None:
    assert ended(replace(SAMPLED, tried=tried), AdvisorSettings(), 0.03) == called


def test_from_a_better_prior_rejection_sampling_is_worth_trying_again() -> None:
    assert choose(replace(SAMPLED, tried=(*PLATEAU, round_("keep", 0.2, "distillation")))).recommendation.action == "rejection-sampling"


SAME_AGAIN = Tried(method="expert-iteration", outcome="refuse", why="what it keeps is what a round before it kept")


def test_what_was_refused_is_not_advised_again_before_something_is_kept() -> None:
    option = of(choose(replace(SAMPLED, tried=(WORKED, SAME_AGAIN))), "expert-iteration")
    assert option.standing == "refused" and "it was refused" in option.reason.says and SAME_AGAIN.why in option.reason.measured
    assert ended(replace(SAMPLED, tried=(WORKED, SAME_AGAIN, SAME_AGAIN)), AdvisorSettings(), 0.03) == "", (
        "a refusal is no round that gained little"
    )
    again = choose(replace(SAMPLED, tried=(WORKED, SAME_AGAIN, round_("keep", 0.1))))
    assert of(again, "expert-iteration").standing == "advised"
    otherwise = choose(replace(SAMPLED, tried=(WORKED, replace(SAME_AGAIN, variant="hints"))))
    assert of(otherwise, "expert-iteration").standing == "advised", "another way of a round was refused, not the round"
    other = choose(replace(DEMONSTRATED, tried=(Tried(method="sft", outcome="refuse", why="no row fits"),)))
    assert of(other, "sft").standing == "refused" and of(other, "sft").reason.measured == "no row fits"


def test_a_refusal_that_labels_lift_is_not_counted() -> None:
    refusal = Decision(outcome="refuse", action="", reasons=("no labels",))
    assert tried("rejection-sampling", refusal) == Tried(method="rejection-sampling", outcome="refuse", why="no labels")
    assert tried("rejection-sampling", replace(refusal, awaits=True)) is None
    assert tried("base", replace(refusal, outcome="baseline")) is None


@pytest.mark.parametrize(("sampled", "standing"), [(1, "open"), (35, "open"), (36, "refused"), (50, "refused")])
@pytest.mark.parametrize("exact", [True, False])
def test_a_few_tasks_without_a_success_do_not_say_that_there_is_none(sampled: int, standing: str, exact: bool) -> None:
    seen = replace(
        SAMPLED, verifier_exact=exact, tasks_sampled=sampled, tasks_solved=0, tasks_mixed=0, samples_per_task=4, pass_n=rate(0.0)
    )
    advice = choose(seen)
    option = of(advice, "rejection-sampling")
    assert (option.standing, advice.recommendation.action) == (standing, "rejection-sampling" if standing == "open" else "curriculum")
    assert standing == "refused" or "sample more" in option.reason.says
    assert of(advice, "label").standing == "done", "there is nothing to label"


@pytest.mark.parametrize("trusted", [False, True])
def test_a_cheat_bars_self_training_unless_the_verifier_is_trusted_and_rl_always(trusted: bool) -> None:
    seen = replace(SAMPLED, verifier_exact=False, cheat="every answer listed", trusted_unaudited=trusted)
    advice = choose(replace(seen, tried=(*PLATEAU,), **GOAL))
    assert of(advice, "rl").standing == "refused" and of(advice, "rl").reason.measured == "every answer listed"
    assert choose(seen).recommendation.action == ("rejection-sampling" if trusted else "measure")
    assert of(choose(replace(seen, verifier_exact=True)), "rejection-sampling").standing == "advised"


# ---------------------------------------------------------------- bad input


def test_two_tasks_only() -> None:
    few = replace(VERIFIED, rate=Interval(value=0.5, low=math.nan, high=math.nan, n=1), samples_per_task=8, tasks_sampled=2, tasks_solved=2,
                  tasks_mixed=0, pass_n=Interval(value=1.0, low=math.nan, high=math.nan, n=1))  # fmt: skip
    assert of(choose(few), "rejection-sampling").standing == "advised", "two tasks do not show that none is mixed"
    assert choose(few).recommendation.action == "rejection-sampling"
    assert of(choose(replace(few, **GOAL, tried=PLATEAU)), "rl").standing == "refused"


def test_all_solved_at_the_start() -> None:
    solved = replace(SAMPLED, rate=clopper_pearson(400, 400), tasks_solved=50, tasks_mixed=0, pass_n=rate(1.0, 0.0))
    advice = choose(solved)
    assert advice.recommendation.action == "ship" and "less is left" in advice.recommendation.reason.says
    assert of(advice, "rejection-sampling").standing == "done"


def test_none_ever_solved() -> None:
    advice = choose(replace(SAMPLED, rate=rate(0.0), tasks_solved=0, tasks_mixed=0, pass_n=rate(0.0)))
    assert of(advice, "rejection-sampling").standing == "refused" and "nothing to keep" in of(advice, "rejection-sampling").reason.says
    assert advice.recommendation.action == "curriculum"
    taught = choose(replace(SAMPLED, rate=rate(0.0), tasks_solved=0, tasks_mixed=0, pass_n=rate(0.0), teacher=STRONG))
    assert taught.recommendation.action == "distillation"


def test_a_verifier_that_says_yes_to_everything() -> None:
    yes = replace(
        SAMPLED,
        noop_fails=False,
        rate=rate(1.0, 0.0),
        tasks_solved=50,
        tasks_mixed=0,
        demonstrations=5,
        demonstrations_passing=5,
        demonstration_rate=rate(1.0, 0.0),
    )
    advice = choose(yes)
    assert of(advice, "rejection-sampling").standing == "refused"
    assert advice.recommendation.action != "ship", "a rate that such a verifier gives says nothing"


def test_a_teacher_identical_to_the_student() -> None:
    twin = replace(STRONG, same=True, gain=gain(0.0, 0.0))
    option = of(choose(replace(VERIFIED, teacher=twin)), "distillation")
    assert option.standing == "refused" and "is the student" in option.reason.says
    alike = of(choose(replace(VERIFIED, teacher=replace(STRONG, gain=gain(0.0, 0.01)))), "distillation")
    assert alike.standing == "refused" and "no better" in alike.reason.says


def test_nothing_at_all() -> None:
    advice = choose(Measurements())
    assert advice.recommendation.action == "measure" and "verifier" in advice.recommendation.reason.says


def test_thresholds_that_cannot_be() -> None:
    from sharpen.advisor import Forecast

    with pytest.raises(SettingsError, match="did you mean 'sft'"):
        AdvisorSettings(forecasts={"stf": Forecast(share=0.1, low=0, high=1)})
    with pytest.raises(SettingsError, match="over high"):
        AdvisorSettings(forecasts={"sft": Forecast(share=0.1, low=1, high=0)})
