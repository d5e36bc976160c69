"""Every estimator against brute force, at its degenerate ends, and its coverage in simulation."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import bdtr, bdtrc

from sharpen import stats
from sharpen.records import Gain, Interval, TaskResult

quick = settings(max_examples=40, deadline=None)


def results(*counts: tuple[int, int, int], families: str = "") -> list[TaskResult]:
    """One task per (samples, passes, errors); task i is in family ``families[i]``, by default its own."""
    return [
        TaskResult(task=f"t{i}", family=families[i] if families else f"f{i}", samples=s, passes=p, errors=e)
        for i, (s, p, e) in enumerate(counts)
    ]


def bounds(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


# ---------------------------------------------------------------- pass@k


@pytest.mark.parametrize(("n", "c", "k"), [(n, c, k) for n in range(1, 7) for c in range(n + 1) for k in range(1, n + 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(n: int, c: int, k: int) -> None:
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert stats.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@given(st.integers(1, 200), st.data())
@quick
def test_pass_at_k_grows_with_k_and_c(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    here = stats.pass_at_k(n, c, k)
    assert 0 <= here <= 1
    assert stats.pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert k == n or stats.pass_at_k(n, c, k + 1) >= here
    assert c == n or stats.pass_at_k(n, c + 1, k) >= here


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (0, 0, 1), (4, -1, 1), (4, 1, 0), (-1, 0, 1)])
def test_pass_at_k_refuses_what_has_no_unbiased_estimate(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"needs 1 <= k <= n|between 0 and n"):
        stats.pass_at_k(n, c, k)


# ---------------------------------------------------------------- Clopper-Pearson


@given(st.integers(1, 80), st.data(), st.sampled_from([0.8, 0.95, 0.999]))
@quick
def test_clopper_pearson_inverts_the_binomial_tails(n: int, data: st.DataObject, level: float) -> None:
    x, tail = data.draw(st.integers(0, n)), (1 - level) / 2
    low = brentq(lambda p: bdtrc(x - 1, n, p) - tail, 0, 1) if x else 0.0
    high = brentq(lambda p: bdtr(x, n, p) - tail, 0, 1) if x < n else 1.0
    assert bounds(stats.clopper_pearson(x, n, level)) == pytest.approx((low, high), abs=1e-9)
    one_sided = 1 - tail
    assert bounds(stats.clopper_pearson(x, n, one_sided, "lower")) == pytest.approx((low, 1), abs=1e-9)
    assert bounds(stats.clopper_pearson(x, n, one_sided, "upper")) == pytest.approx((0, high), abs=1e-9)


def test_clopper_pearson_of_nothing_is_undefined() -> None:
    nothing = stats.clopper_pearson(0, 0)
    assert math.isnan(nothing.value) and math.isnan(nothing.low) and math.isnan(nothing.high)
    with pytest.raises(ValueError, match="between 0 and n"):
        stats.clopper_pearson(3, 2)
    with pytest.raises(ValueError, match="level"):
        stats.clopper_pearson(1, 2, 95)


# ---------------------------------------------------------------- intervals by family


def test_the_bootstrap_agrees_with_a_slow_loop() -> None:
    rng = random.Random(3)
    values = {f"f{i}": [rng.random() for _ in range(rng.randint(1, 4))] for i in range(24)}
    families, means = list(values.values()), []
    for _ in range(4000):
        drawn = [v for _ in families for v in rng.choice(families)]
        means.append(sum(drawn) / len(drawn))
    fast = stats.cluster_bootstrap_mean(values)
    # Student's t with 23 degrees of freedom is at 2.0687, times sqrt(24/23): both tails hold 1.73 %.
    assert bounds(fast) == pytest.approx(np.quantile(means, [0.0173, 0.9827]), abs=0.01)
    assert fast.value == pytest.approx(np.mean([v for f in families for v in f]))
    assert (fast.n, fast.method) == (24, "cluster bootstrap")
    assert fast == stats.cluster_bootstrap_mean(values) != stats.cluster_bootstrap_mean(values, seed=1)


def test_few_families_use_t() -> None:
    values = {"a": [0.1], "b": [0.4], "c": [0.6], "d": [0.5]}
    half = 3.182446 * np.std([0.1, 0.4, 0.6, 0.5], ddof=1) / 2  # the textbook interval where each family holds one task
    assert bounds(stats.cluster_bootstrap_mean(values)) == pytest.approx((0.4 - half, 0.4 + half))


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), max_size=30))
@quick
def test_the_interval_holds_its_value_and_stays_in_range(values: list[list[float]]) -> None:
    interval = stats.cluster_bootstrap_mean({str(i): v for i, v in enumerate(values)}, resamples=400)
    if len(values) < 2:
        assert math.isnan(interval.low) and math.isnan(interval.high)
    else:
        assert -1e-9 <= interval.low - 1e-9 <= interval.value <= interval.high + 1e-9 <= 1 + 2e-9


@pytest.mark.parametrize("n", [2, 7, 60])
def test_all_equal_falls_back_to_clopper_pearson_over_families(n: int) -> None:
    none = stats.pass_interval(results(*[(8, 0, 0)] * n))
    every = stats.pass_interval(results(*[(8, 8, 0)] * n))
    half = stats.pass_interval(results(*[(8, 4, 0)] * n))
    assert bounds(none) == pytest.approx(bounds(stats.clopper_pearson(0, n)))
    assert bounds(every) == pytest.approx(bounds(stats.clopper_pearson(n, n)))
    assert bounds(half) == pytest.approx((0.5 * every.low, 0.5 + 0.5 * none.high))
    assert none.method == every.method == half.method == "Clopper-Pearson over families"


def test_one_solved_family_of_sixty_is_not_surer_than_clopper_pearson() -> None:
    one = stats.pass_interval(results((8, 8, 0), *[(8, 0, 0)] * 59))
    assert one.high == pytest.approx(stats.clopper_pearson(1, 60).high)


def test_families_that_only_rose_say_nothing_of_how_many_fall() -> None:
    risen = stats.cluster_bootstrap_mean({str(i): [1.0 if i < 2 else 0.0] for i in range(48)}, span=(-1.0, 1.0))
    assert bounds(risen) == pytest.approx((-stats.clopper_pearson(0, 48).high, stats.clopper_pearson(2, 48).high))


def test_one_family_has_a_value_and_no_bounds() -> None:
    one = stats.pass_interval(results((4, 1, 0), (4, 2, 0), families="aa"))
    assert one.value == pytest.approx(0.375) and one.n == 1
    assert math.isnan(one.low) and math.isnan(one.high)


def test_pass_interval_averages_tasks_and_counts_families() -> None:
    tasks = results((4, 1, 0), (4, 2, 0), (4, 4, 0), families="aab")
    assert stats.pass_interval(tasks, k=1).value == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert stats.pass_interval(tasks, k=4).value == 1.0  # k = n: solved at all
    assert stats.pass_interval(tasks, k=1).n == 2


def test_errors_are_not_tries() -> None:
    tasks = results((4, 1, 2), (4, 2, 0), (4, 0, 4))
    assert stats.pass_interval(tasks, k=1).value == pytest.approx(0.5)
    assert stats.pass_interval(tasks, k=1).n == 2  # the third has errors only
    assert stats.pass_interval(tasks, k=3).n == 1  # the first has two tries left
    nothing = stats.pass_interval(tasks, k=5)
    assert math.isnan(nothing.value) and math.isnan(nothing.low) and nothing.n == 0
    assert stats.pass_range_with_errors(tasks) == pytest.approx(((0.25 + 0.5 + 0) / 3, (0.75 + 0.5 + 1) / 3))
    assert all(map(math.isnan, stats.pass_range_with_errors([])))


def coverage(draw: Callable[[np.random.Generator], dict[str, list[float]]], truth: float, span: tuple[float, float]) -> float:
    rng, trials = np.random.default_rng(5), 200
    intervals = [stats.cluster_bootstrap_mean(draw(rng), 0.95, i, 1000, span) for i in range(trials)]
    return sum(i.low - 1e-12 <= truth <= i.high + 1e-12 for i in intervals) / trials


@pytest.mark.parametrize("families", [6, 20, 40])
@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_coverage_of_rates(families: int, rate: float) -> None:
    """One task a family, eight samples: family rates are Beta with correlation 0.1 among the samples. 0.93 allows for the 200 trials."""

    def draw(rng: np.random.Generator) -> dict[str, list[float]]:
        rates = rng.beta(9 * rate, 9 * (1 - rate), families)
        return {str(i): [x / 8] for i, x in enumerate(rng.binomial(8, rates))}

    assert coverage(draw, rate, (0, 1)) >= 0.93


@pytest.mark.parametrize("families", [6, 20, 40])
@pytest.mark.parametrize("differing", [0.05, 0.3, 1.0])
def test_coverage_of_no_gain(families: int, differing: float) -> None:
    """The chance of keeping a rung that is no better: half of what is not covered."""

    def draw(rng: np.random.Generator) -> dict[str, list[float]]:
        gains = rng.uniform(-0.6, 0.6, families) * (rng.random(families) < differing)
        return {str(i): [g] for i, g in enumerate(gains)}

    assert coverage(draw, 0.0, (-1, 1)) >= 0.93


# ---------------------------------------------------------------- better or not


def test_a_gain_is_paired_by_task() -> None:
    base = results((4, 1, 0), (4, 2, 0), (4, 0, 0), families="aab")
    other = results((4, 2, 0), (4, 4, 0), (4, 1, 0), families="aab")
    gain = stats.paired_gain(base, other[::-1], level=0.99, names=("000", "001"))
    assert gain.printed.value == gain.deciding.value == pytest.approx((0.25 + 0.5 + 0.25) / 3)
    assert (gain.printed.level, gain.deciding.level, gain.printed.n) == (0.95, 0.99, 2)
    assert gain.deciding.low <= gain.printed.low and gain.deciding.high >= gain.printed.high
    assert (gain.base, gain.other) == ("000", "001")


def test_a_gain_needs_the_same_tasks() -> None:
    with pytest.raises(ValueError, match="1 are on one side only: t2"):
        stats.paired_gain(results((4, 1, 0), (4, 1, 0)), results((4, 1, 0), (4, 1, 0), (4, 1, 0)))
    with pytest.raises(ValueError, match="counted twice"):
        stats.paired_gain(results((4, 1, 0)) * 2, results((4, 1, 0)))


def test_a_task_without_a_try_on_one_side_leaves_the_pair() -> None:
    gain = stats.paired_gain(results((4, 0, 4), (4, 1, 0), (4, 1, 0)), results((4, 4, 0), (4, 2, 0), (4, 3, 1)))
    assert gain.printed.n == 2 and gain.printed.value == pytest.approx((0.25 + 0.75) / 2)


def test_no_family_differs() -> None:
    same = results(*[(8, 3, 0)] * 60)
    gain = stats.paired_gain(same, same)
    unseen = stats.clopper_pearson(0, 60).high
    assert bounds(gain.printed) == pytest.approx((-unseen, unseen)) and gain.printed.value == 0
    assert math.isnan(gain.smallest_visible)
    assert stats.decide(gain, 0.03) == "undecided"


def test_four_lucky_families_do_not_keep_a_rung() -> None:
    """Four of four families better by chance is 1 in 16; the bare bootstrap would keep the rung."""
    base = results(*[(1, 0, 0)] * 60)
    assert stats.decide(stats.paired_gain(base, results(*[(1, 1, 0)] * 4, *[(1, 0, 0)] * 56)), 0.03) == "undecided"
    assert stats.decide(stats.paired_gain(base, results(*[(1, 1, 0)] * 9, *[(1, 0, 0)] * 51)), 0.03) == "keep"


def test_the_smallest_visible_gain_is_undefined_where_the_interval_rests_on_no_standard_error() -> None:
    base = [TaskResult(task=str(at), family=str(at), samples=4, passes=1) for at in range(26)]
    other = [TaskResult(task=one.task, family=one.family, samples=4, passes=3 if at < 2 else 1) for at, one in enumerate(base)]
    gain = stats.paired_gain(base, other, 0.993)
    assert gain.deciding.method == stats.BY_FAMILIES and gain.deciding.high > 0.3
    assert math.isnan(gain.smallest_visible), "5 points were claimed where the interval reaches 30"


def test_smallest_visible_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    base = results(*[(16, 5, 0)] * 60)
    wide = stats.paired_gain(base, results(*[(16, int(p), 0) for p in rng.binomial(16, 0.3, 60)]))
    true = wide.smallest_visible
    sd = true / (1.95996 + 0.84162) * math.sqrt(60)
    found = [
        stats.cluster_bootstrap_mean({str(i): [g] for i, g in enumerate(rng.normal(true, sd, 60))}, 0.95, t, 1000, (-1, 1)).low > 0
        for t in range(300)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)


def test_nothing_in_common_is_undecided() -> None:
    gain = stats.paired_gain([], [])
    assert math.isnan(gain.printed.value) and math.isnan(gain.smallest_visible)
    assert stats.decide(gain, 0.03) == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.2, "keep"),
        (0.001, 0.01, "keep"),
        (-0.2, -0.01, "worse"),
        (-0.01, 0.02, "plateau"),
        (-0.01, 0.03, "undecided"),
        (0.0, 0.2, "undecided"),
        (-0.1, 0.0, "plateau"),
        (math.nan, math.nan, "undecided"),
    ],
)
def test_decide(low: float, high: float, expected: str) -> None:
    interval = Interval(value=(low + high) / 2, low=low, high=high, n=60)
    assert stats.decide(Gain(base="a", other="b", printed=interval, deciding=interval, smallest_visible=0.05), delta=0.03) == expected


def test_alpha_is_shared() -> None:
    assert stats.shared_level(1) == pytest.approx(0.95)
    assert stats.shared_level(5) == pytest.approx(0.99)
    with pytest.raises(ValueError, match="tries"):
        stats.shared_level(0)


def test_alpha_that_passes_on_is_never_more_in_all() -> None:
    """Whichever of seven tests have something to find, and always do: the alphas of the others, where none has erred yet, add up to 0.05 at most."""
    most = 0.0
    for real in itertools.product((True, False), repeat=7):
        spent = before = 0.0
        for found in real:
            alpha = stats.next_alpha(7, before)
            spent += 0.0 if found else alpha
            before = alpha if found else 0.0
        most = max(most, spent)
        assert spent <= 0.05 + 1e-12
    assert most == pytest.approx(0.05)  # and all of it is used
    with pytest.raises(ValueError, match="needs tests >= 1"):
        stats.next_alpha(0)


# ---------------------------------------------------------------- purity


def test_29_of_29_labels_clear_the_bar() -> None:
    def low(good: int, labels: int, rows: int = 4000) -> float:
        return stats.purity_bound([(good, labels, rows)]).low

    assert low(29, 29) >= 0.9 > low(28, 28) and low(29, 29, 10**6) >= 0.9
    assert low(92, 93) >= 0.9 > low(91, 92)  # one bad label costs 64 more
    assert low(18, 18, 40) >= 0.9 > low(17, 17, 40)  # fewer of few rows
    assert math.isnan(low(0, 0))


def ever(rows: int, good: int, bar: float, sided: Literal["lower", "upper"], looks: int) -> float:
    """The chance that the bound is at some look, one after each label, on the wrong side of ``bar``: exact, path by path. ``good`` of ``rows`` are good."""
    crossed, paths = 0.0, {0: 1.0}
    for n in range(1, looks + 1):
        then: dict[int, float] = defaultdict(float)
        for seen, chance in paths.items():
            next_good = (good - seen) / (rows - n + 1)
            then[seen + 1] += chance * next_good
            then[seen] += chance * (1 - next_good)
        paths = {}
        for seen, chance in then.items():
            if chance:
                bound = stats.purity_bound([(seen, n, rows)], sided=sided)
                if bound.low >= bar if sided == "lower" else bound.high < bar:
                    crossed += chance
                else:
                    paths[seen] = chance
    return crossed


@pytest.mark.parametrize(
    ("rows", "bar", "looks"), [(4000, 0.9, 150), (400, 0.9, 200), (400, 0.8, 150), (400, 0.95, 400), (60, 0.9, 60), (10, 0.5, 10)]
)
def test_whoever_looks_after_every_label_is_misled_no_more_often_than_said(rows: int, bar: float, looks: int) -> None:
    """At purity one row under the bar nothing may say that it clears; at the bar, nothing that it does not. Fixed-n bounds err 18 % of the time by 300."""
    at = math.ceil(bar * rows)
    assert ever(rows, at - 1, bar, "lower", looks) <= 0.05
    assert ever(rows, at, bar, "upper", looks) <= 0.05
    if rows == 4000:
        assert ever(rows, at - 1, bar, "lower", looks) > 0.045  # and little is given away


def test_the_bound_of_rows_that_are_all_labelled_is_what_they_are() -> None:
    for good in range(13):
        assert stats.bound_at_any_look(good, 12, 12) == stats.bound_at_any_look(good, 12, 12, sided="upper") == good
    assert (stats.bound_at_any_look(0, 0, 12), stats.bound_at_any_look(0, 0, 12, sided="upper")) == (0, 12)


@given(st.floats(0, 1), st.floats(0.01, 1), st.floats(0, 1))
@quick
def test_purity_forecast_recovers_the_confusion_table(p: float, tpr: float, share: float) -> None:
    fpr = tpr * share * 0.99
    passing = tpr * p + fpr * (1 - p)
    if passing > 1e-6:
        assert stats.purity_forecast(tpr, fpr, passing) == pytest.approx(tpr * p / passing, abs=1e-6)


def test_purity_forecast_where_it_says_nothing() -> None:
    assert math.isnan(stats.purity_forecast(0.5, 0.5, 0.5))
    assert math.isnan(stats.purity_forecast(0.2, 0.5, 0.3))
    assert math.isnan(stats.purity_forecast(1.0, 0.0, 0.0))  # nothing passes
    assert stats.purity_forecast(0.9, 0.1, 0.05) == 0.0  # fewer passes than false positives alone would give
    with pytest.raises(ValueError, match="tpr"):
        stats.purity_forecast(1.1, 0, 0.5)


# ---------------------------------------------------------------- what an adaptive budget goes by


@pytest.mark.parametrize(("a", "b"), [(0.5, 1.5), (3.0, 3.0), (8.0, 2.0)])
def test_a_beta_prior_is_found_again(a: float, b: float) -> None:
    rng = np.random.default_rng(0)
    found = stats.beta_prior([(int(rng.binomial(6, p)), 6) for p in rng.beta(a, b, 3000)])
    assert found[0] / sum(found) == pytest.approx(a / (a + b), abs=0.05)
    assert sum(found) == pytest.approx(a + b, rel=0.4)


def test_a_beta_prior_turns_with_passes_and_fails_and_learns_from_nothing_but_data() -> None:
    counts = [(0, 4)] * 5 + [(1, 4)] * 2 + [(4, 4), (2, 3)]
    a, b = stats.beta_prior(counts)
    assert stats.beta_prior([(n - s, n) for s, n in counts]) == pytest.approx((b, a))
    assert stats.beta_prior([]) == pytest.approx((1.0, 1.0), rel=0.2)  # a grid point near it
    a, b = stats.beta_prior([(0, 4)] * 100)
    assert a / (a + b) < 0.01
    with pytest.raises(ValueError, match="5 passes in 4 tries"):
        stats.beta_prior([(5, 4)])


@pytest.mark.parametrize("theta", [0.2, 1.0, 5.0])
def test_the_chance_of_something_new_is_that_of_the_urn_it_was_drawn_from(theta: float) -> None:
    rng = random.Random(0)

    def draw(s: int) -> tuple[int, int]:
        return s, sum(rng.random() < theta / (theta + before) for before in range(s))

    found = [draw(rng.randint(0, 8)) for _ in range(2000)]
    chance = stats.chance_of_new(found, np.zeros((len(found), 1)))[:, 0]
    for s in range(9):
        mine = chance[[n == s for n, _ in found]]
        assert mine.mean() == pytest.approx(theta / (theta + s), abs=0.06)
        assert s > 0 or mine == pytest.approx(np.ones(len(mine)))


def test_the_chance_of_something_new_falls_with_every_success_that_was_not() -> None:
    found = [(0, 0), (1, 1), (4, 1), (4, 2), (4, 4)]
    chance = stats.chance_of_new(found, np.tile(np.arange(4.0), (5, 1)))
    assert chance.shape == (5, 4)
    assert (np.diff(chance, axis=1) < 0).all() and chance[0, 0] == pytest.approx(1)
    assert chance[2, 0] < chance[3, 0] < chance[4, 0]
    for wrong in ((1, 2), (2, 0)):
        with pytest.raises(ValueError, match="at most as many distinct"):
            stats.chance_of_new([wrong], np.zeros((1, 1)))


def test_divergence_is_between_0_and_1_bit_and_0_for_the_same() -> None:
    weights = np.random.default_rng(0).random((20, 5))
    found = stats.jensen_shannon(weights[:10], weights[10:])
    assert found.shape == (10,) and (found > 0).all() and (found < 1).all()
    assert stats.jensen_shannon(weights, 3 * weights) == pytest.approx(np.zeros(20), abs=1e-12)
    assert stats.jensen_shannon(weights[:10], weights[10:]) == pytest.approx(stats.jensen_shannon(weights[10:], weights[:10]))
    assert float(stats.jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 2.0]))) == 1.0
    assert float(stats.jensen_shannon(np.array([1.0, 0.0]), np.array([1.0, 1.0]))) == pytest.approx(0.311278, abs=1e-6)  # scipy's, squared
    assert math.isnan(float(stats.jensen_shannon(np.zeros(2), np.ones(2))))


def test_a_divergence_does_not_depend_on_how_many_symbols_one_side_has_alone() -> None:
    """They are counted as one; the numbers must be those of the whole table."""
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 4, (6, 30)).astype(float), rng.integers(0, 4, (6, 30)).astype(float)
    one[:, :10], other[:, 20:] = 0, 0
    sides = [
        {f"f{row}": {f"s{at}": weight for at, weight in enumerate(table[row]) if weight} for row in range(6)} for table in (one, other)
    ]
    between, within, excess = stats.cluster_divergence([(sides[0], sides[0], sides[1])], resamples=50)
    assert between.value == pytest.approx(float(stats.jensen_shannon(one.sum(0), other.sum(0))))
    assert within.value == pytest.approx(0) and excess.value == pytest.approx(between.value) and between.n == 6
    again = stats.relevel(excess, 0.9)
    assert again.value == excess.value and excess.low < again.low < again.high < excess.high
    assert stats.relevel(again, 0.95).low == pytest.approx(excess.low)


@pytest.mark.parametrize("families", [0, 1])
def test_a_divergence_of_nothing_or_of_one_family_has_no_bounds(families: int) -> None:
    side = {f"f{at}": {"a": 1.0} for at in range(families)}
    for found in stats.cluster_divergence([(side, side, {} if not families else side)]):
        assert found.n == families and math.isnan(found.low) and math.isnan(found.high) and (math.isnan(found.value) is (not families))


def test_an_excess_over_chance_covers_the_truth_at_least_as_often_as_it_says() -> None:
    """Two agents that are the same differ by more than chance seldom enough, and two that are not are found."""
    base = np.array([0.4, 0.3, 0.2, 0.1, 0.0])
    other = np.array([0.1, 0.2, 0.3, 0.3, 0.1])
    rng = np.random.default_rng(2)

    def side(of: np.ndarray) -> dict[str, dict[str, float]]:  # type: ignore[type-arg]
        return {f"f{at}": {str(s): float(w) for s, w in enumerate(rng.multinomial(8, of)) if w} for at in range(15)}

    null, real = [], []
    for _ in range(60):
        one, again = side(base), side(base)
        null.append(stats.cluster_divergence([(one, again, side(base))], resamples=200)[2])
        real.append(stats.cluster_divergence([(one, again, side(other))], resamples=200)[2])
    truth = float(stats.jensen_shannon(base, other))
    assert sum(i.low <= 0 <= i.high for i in null) >= 55 and sum(i.low <= truth <= i.high for i in real) >= 55
    assert abs(np.mean([i.value for i in null])) < 0.01 and abs(np.mean([i.value for i in real]) - truth) < 0.02
    assert sum(i.low > 0 for i in real) > 50


def test_a_level_is_printed_as_it_is_and_never_as_certainty() -> None:
    said = {
        0.9: "90",
        0.95: "95",
        1 - 0.05 / 3: "98.33",
        0.9875: "98.75",
        0.99997: "99.997",
        1 - 1e-9: "99.9999999",
        1 - 0.05 / 512: "99.9902",
    }
    assert {level: stats.level_text(level) for level in said} == said
    assert all(float(stats.level_text(1 - 2.0**-n)) < 100 for n in range(1, 53))
