"""Estimators, intervals and the test that decides. Pure: counts in, numbers out; the same seed gives the same numbers.

The unit of resampling is the *family* (cluster) of tasks, since siblings succeed and fail together (2411.00640). Every interval of a
mean over tasks is made by one rule, :func:`cluster_bootstrap_mean`. Undefined numbers are NaN, never 0.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# scipy.special and not scipy.stats, which takes a second to import; scipy publishes no types.
from scipy.special import betaincinv, gammaln, ndtr, ndtri, stdtrit

from sharpen.records import Gain, Interval, TaskResult

Floats = NDArray[np.float64]

FEW_FAMILIES = 20
"""Under this many families the interval is Student's t, not the bootstrap.

At the levels a ladder decides at (0.99 and over) the bootstrap of fewer families has no draws left in its tails. Simulated coverage at
level 0.95, 5 to 60 families: null gains 0.94 to 1.00, rates 0.95 to 1.00, strongly skewed rates of unequal families 0.90 at worst, by too
low an upper bound. ``tests/test_stats.py`` repeats a part of it.
"""


BY_FAMILIES = "Clopper-Pearson over families"  # the branch of an interval of families that are nearly all alike


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased chance that at least one of ``k`` tries passes, from ``c`` passes in ``n`` tries: 1 - C(n-c, k) / C(n, k) (2107.03374).

    In [0, 1]. ValueError unless 1 <= k <= n and 0 <= c <= n: with fewer than k tries there is no unbiased estimate.
    """
    if n < 1 or k < 1 or k > n:
        raise ValueError(f"pass@{k} needs 1 <= k <= n, and n is {n}")
    if not 0 <= c <= n:
        raise ValueError(f"{c} passes in {n} tries: passes must lie between 0 and n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def clopper_pearson(successes: int, n: int, level: float = 0.95, sided: Literal["two", "lower", "upper"] = "two") -> Interval:
    """The exact binomial interval (Clopper and Pearson 1934): covers at least ``level`` at every true rate.

    ``lower`` and ``upper`` put all of 1 - level on that one side; the other bound is then 1 or 0. All NaN where ``n`` is 0.
    """
    _check_level(level)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: successes must lie between 0 and n")
    if n == 0:
        return _undefined(0, level)
    tail = (1 - level) / 2 if sided == "two" else 1 - level
    low = 0.0 if successes == 0 or sided == "upper" else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n or sided == "lower" else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return Interval(value=successes / n, low=low, high=high, n=n, level=level, method="Clopper-Pearson")


def cluster_bootstrap_mean(
    values_by_cluster: Mapping[str, Sequence[float]],
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 10_000,
    span: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """The mean over all values (each task counts once, whatever its family's size), with an interval that resamples clusters.

    ``span`` is the range a value can take; ``Interval.n`` is the number of clusters that hold a value. Bounds are NaN under 2 clusters,
    and the value too under 1. ``Interval.method`` names the branch taken:

    - ``cluster bootstrap`` (20 clusters or more): the expanded percentile bootstrap, whose tails are moved out to undo the
      sqrt((G-1)/G) narrowness and to stand in for Student's t (Hesterberg 2014, 1411.5279).
    - ``cluster t`` (fewer): t with G-1 degrees of freedom on the cluster-robust standard error (Cameron and Miller 2015, section VI).
    - ``Clopper-Pearson over families``: nearly all clusters sit at one value, so that resampling sees too little: with m clusters
      elsewhere, 2^-m > (1 - level) / 2, not even an exact sign-flip test could reject (Fisher 1935). The shares of clusters below and
      above have Clopper-Pearson upper bounds, each of which fails with probability (1 - level) / 2, and elsewhere means ``span`` at most:
      each bound reaches its share of the way to its end. With m = 0 this is Clopper-Pearson itself for 0 of G and G of G; with m > 0
      the wider of this and the branch above, each side by itself.
    """
    _check_level(level)
    groups = [np.asarray(values, dtype=float) for values in values_by_cluster.values() if len(values)]
    sums, sizes = np.array([g.sum() for g in groups]), np.array([float(len(g)) for g in groups])
    n = len(groups)
    if n < 2:
        return _undefined(n, level, float(sums[0] / sizes[0]) if n else math.nan)
    mean = float(sums.sum() / sizes.sum())

    if n < FEW_FAMILIES:
        half = float(stdtrit(n - 1, (1 + level) / 2)) * _standard_error(sums, sizes)
        low, high, method = mean - half, mean + half, "cluster t"
    else:
        low, high = _expanded_percentile(sums, sizes, level, seed, resamples)
        method = "cluster bootstrap"

    # Rounded, since 0.1 + 0.2 and 0.3 are one value here.
    means = np.round(sums / sizes, 12)
    common, count = Counter(means.tolist()).most_common(1)[0]
    elsewhere = n - count
    if elsewhere <= n / 2 and 0.5**elsewhere > (1 - level) / 2:
        below = clopper_pearson(int((means < common).sum()), n, level).high
        above = clopper_pearson(int((means > common).sum()), n, level).high
        # At an end of the span nothing can hide beyond it.
        low = low if common <= span[0] else min(low, common - below * (common - span[0]))
        high = high if common >= span[1] else max(high, common + above * (span[1] - common))
        method = BY_FAMILIES
    return Interval(value=mean, low=max(low, span[0]), high=min(high, span[1]), n=n, level=level, method=method)


def pass_interval(results: Sequence[TaskResult], k: int = 1, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean pass@k over tasks, by family. In [0, 1].

    Errored samples are not tries. A task left with fewer than k tries is left out (so ``n`` counts the families that remain): pass@k cannot
    be estimated there without bias. All NaN where none remains.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for r in results:
        if (tries := r.samples - r.errors) >= k:
            values[r.family].append(pass_at_k(tries, r.passes, k))
    return cluster_bootstrap_mean(values, level, seed)


def pass_range_with_errors(results: Sequence[TaskResult]) -> tuple[float, float]:
    """Mean pass@1 over tasks with every error counted as a fail, then as a pass. NaN where no task has a sample."""
    sampled = [r for r in results if r.samples]
    if not sampled:
        return math.nan, math.nan
    as_fails = [r.passes / r.samples for r in sampled]
    as_passes = [(r.passes + r.errors) / r.samples for r in sampled]
    return float(np.mean(as_fails)), float(np.mean(as_passes))


def paired_gain(
    base: Sequence[TaskResult],
    other: Sequence[TaskResult],
    level: float = 0.95,
    seed: int = 0,
    names: tuple[str, str] = ("base", "other"),
) -> Gain:
    """``other`` minus ``base`` in pass@1, task by task on the same tasks, by family. In [-1, 1].

    ValueError names the tasks that one side lacks. A task whose every sample errored on either side is left out of both. Where (nearly)
    no family differs the bootstrap would claim certainty; see :func:`cluster_bootstrap_mean` for the bound used then.

    ``smallest_visible`` is (z[(1+level)/2] + z[0.8]) times the cluster standard error (Bloom 1995; power analysis in 2411.00640): the true
    gain that the deciding interval would put over 0 four times in five. A normal approximation, so NaN where the deciding interval is not made of that error
    (Clopper-Pearson over families), and where the error is 0 or undefined.
    """
    before, after = _by_task(base), _by_task(other)
    if missing := sorted(before.keys() ^ after.keys()):
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(f"a paired gain needs the same tasks on both sides; {len(missing)} are on one side only: {shown}")
    differences: dict[str, list[float]] = defaultdict(list)
    for task, b in before.items():
        o = after[task]
        if b.samples > b.errors and o.samples > o.errors:
            differences[b.family].append(o.passes / (o.samples - o.errors) - b.passes / (b.samples - b.errors))

    sums, sizes = np.array([sum(d) for d in differences.values()]), np.array([float(len(d)) for d in differences.values()])
    error = _standard_error(sums, sizes) if len(sums) > 1 else math.nan
    deciding = cluster_bootstrap_mean(differences, level, seed, span=(-1.0, 1.0))
    rests_on_error = error > 0 and deciding.method != BY_FAMILIES
    return Gain(
        base=names[0],
        other=names[1],
        printed=cluster_bootstrap_mean(differences, 0.95, seed, span=(-1.0, 1.0)),
        deciding=deciding,
        smallest_visible=float(ndtri((1 + level) / 2) + ndtri(0.8)) * error if rests_on_error else math.nan,
    )


def ratio_of_means(pairs_by_cluster: Mapping[str, Sequence[tuple[float, float]]], level: float = 0.95) -> Interval:
    """The mean of all y over the mean of all x, for (x, y) of each task, by cluster: Fieller's interval (1954), which is not fooled by a small mean of x.

    The ratios r at which the sums of y - r x over clusters do not differ from 0, by t with G-1 degrees of freedom. Value NaN unless the mean of x is
    over 0; bounds NaN where it is not shown to be (the set is then unbounded), under 2 clusters, and where no cluster differs from another.
    """
    _check_level(level)
    groups = [np.asarray(pairs, dtype=float) for pairs in pairs_by_cluster.values() if len(pairs)]
    n = len(groups)
    if not n or (total := np.array([group.sum(axis=0) for group in groups]).sum(axis=0))[0] <= 0:
        return _undefined(n, level)
    x, y = np.array([group.sum(axis=0) for group in groups]).T
    value = float(total[1] / total[0])
    if n < 2:
        return _undefined(n, level, value)
    spread = float(stdtrit(n - 1, (1 + level) / 2)) ** 2 * n / (n - 1)
    dx, dy = x - x.mean(), y - y.mean()
    a, b, c = (float(s - spread * v) for s, v in ((x.sum() ** 2, dx @ dx), (x.sum() * y.sum(), dx @ dy), (y.sum() ** 2, dy @ dy)))
    inside = b * b - a * c
    if a <= 0 or inside <= 1e-12 * b * b:
        return _undefined(n, level, value)
    half = math.sqrt(inside)
    return Interval(value=value, low=(b - half) / a, high=(b + half) / a, n=n, level=level, method="Fieller")


def share_of_gain(
    before: Sequence[TaskResult], teacher: Sequence[TaskResult], after: Sequence[TaskResult], level: float = 0.95
) -> Interval:
    """Of what ``teacher`` has over ``before`` in pass@1, the share that ``after`` has: (after - before) / (teacher - before), task by task, by family.

    1 is all of it, over 1 more than the teacher, under 0 a loss. See ``ratio_of_means``. A task whose every sample errored on any side is left out.
    """
    sides = [_by_task(results) for results in (before, teacher, after)]
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for task, first in sides[0].items():
        found = [side[task] for side in sides if task in side]
        if len(found) == 3 and all(one.samples > one.errors for one in found):
            old, taught, new = (one.passes / (one.samples - one.errors) for one in found)
            pairs[first.family].append((taught - old, new - old))
    return ratio_of_means(pairs, level)


WITHIN, BETWEEN = 1 / 6, 1 / 9
"""What 2411.00640 (section 5) takes for a comparison of which nothing is known yet: the mean over tasks of p (1 - p), p uniform on [0, 1], and
the variance over tasks of the difference between two models' p."""


def smallest_effect(families: int, tasks: int, n: int, level: float) -> float:
    """The true gain in pass@1 that a paired comparison would find four times in five, before anything is measured.

    ``families`` of ``tasks`` in all, ``n`` tries of each on both sides, decided at ``level``: (z[(1+level)/2] + z[0.8]) times the standard error of
    2411.00640, equation 9, with ``WITHIN`` and ``BETWEEN``; the tasks of a family are taken to gain alike. NaN without tasks.
    """
    if not families or not n:
        return math.nan
    return float(ndtri((1 + level) / 2) + ndtri(0.8)) * math.sqrt(BETWEEN / families + 2 * WITHIN / (n * tasks))


def families_needed(effect: float, tasks_each: float, n: int, level: float) -> int:
    """How many families of ``tasks_each`` tasks make ``smallest_effect`` as small as ``effect`` (over 0)."""
    return math.ceil((float(ndtri((1 + level) / 2) + ndtri(0.8)) / effect) ** 2 * (BETWEEN + 2 * WITHIN / (n * tasks_each)))


def decide(gain: Gain, delta: float) -> Literal["keep", "worse", "plateau", "undecided"]:
    """What the deciding interval says of a rung, ``delta`` being the smallest gain of interest (0.03 is 3 points).

    ``keep``: surely better. ``worse``: surely not. ``plateau``: surely not better by ``delta``. ``undecided`` otherwise, and for NaN:
    a weak test is not a plateau.
    """
    if gain.deciding.low > 0:
        return "keep"
    if gain.deciding.high < 0:
        return "worse"
    return "plateau" if gain.deciding.high < delta else "undecided"


def shared_level(tries: int, alpha: float = 0.05) -> float:
    """The level each of ``tries`` tests is made at, so that all together err with probability ``alpha`` at most (Bonferroni)."""
    if tries < 1 or not 0 < alpha < 1:
        raise ValueError(f"needs tries >= 1 and 0 < alpha < 1, got {tries} and {alpha}")
    return 1 - alpha / tries


def next_alpha(tests: int, rejected: float = 0.0, alpha: float = 0.05) -> float:
    """The alpha of the next of ``tests`` tests in a row: its share of ``alpha``, and the alpha of the test before it where that one was ``rejected``, else 0.

    The online fallback procedure (Tian and Ramdas 2021, 1910.04900): all together err with probability ``alpha`` at most, however they depend on each
    other, and what was proved makes it easier to prove the next.
    """
    if tests < 1 or not 0 < alpha < 1 or not 0 <= rejected < 1:
        raise ValueError(f"needs tests >= 1, 0 < alpha < 1 and 0 <= rejected < 1, got {tests}, {alpha} and {rejected}")
    return alpha / tests + rejected


BELIEVED_ALL_GOOD = 0.92
BELIEVED_SHARE = (40.0, 2.0)
"""What :func:`bound_at_any_look` believes of kept rows before it has seen a label: with probability 0.92 that all are good, else Beta(40, 2).

The bound holds whatever is believed; how many labels it takes follows from it. So much on "all good" that 29 good labels clear a bar of 0.9, which is as
few as labels whose number was fixed beforehand would do; what is left is for verifiers that are good and not perfect (``benchmarks/labels.py``).
"""


def bound_at_any_look(good: int, labels: int, rows: int, level: float = 0.95, sided: Literal["lower", "upper"] = "lower") -> int:
    """How many of ``rows`` are good, at least or at most, from labels on a random sample of them; it holds at all looks together with probability ``level``.

    So one may look after every label, and stop when one likes. Were ``k`` rows good, then the chance of the labels so far under a belief held beforehand,
    over their chance with ``k``, would be a martingale from 1, which ever reaches 1 / (1 - level) with probability 1 - level at most (Ville 1939; Robbins
    1970; drawn without replacement: Waudby-Smith and Ramdas 2020, 2006.04347): the bound is the first ``k`` for which it has not. For ``upper`` every
    share of bad rows is believed alike.
    """
    if sided == "upper":
        return rows - _fewest(labels - good, good, rows, 1 - level, lambda hits, misses: _log_beta(hits + 1, misses + 1))
    a, b = BELIEVED_SHARE

    def believed(hits: int, misses: int) -> float:
        some = math.log(1 - BELIEVED_ALL_GOOD) + _log_beta(hits + a, misses + b) - _log_beta(a, b)
        return some if misses else float(np.logaddexp(some, math.log(BELIEVED_ALL_GOOD)))

    return _fewest(good, labels - good, rows, 1 - level, believed)


def _fewest(hits: int, misses: int, rows: int, alpha: float, believed: Callable[[int, int], float]) -> int:
    """The smallest number of hits among ``rows`` under which the log chance ``believed`` of what was drawn is not over the chance itself by 1 / alpha."""
    most = believed(hits, misses) + math.log(alpha)

    def likely(k: int) -> bool:
        return most < _log_falling(k, hits) + _log_falling(rows - k, misses) - _log_falling(rows, hits + misses)

    # The chance rises up to the likeliest k, which is never given up: no belief does better than it.
    low, high = hits, min(rows - misses, hits * (rows + 1) // (hits + misses)) if hits + misses else 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if likely(middle) else (middle + 1, high)
    return low


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_falling(n: int, k: int) -> float:
    """log of n (n - 1) ... (n - k + 1)."""
    return math.lgamma(n + 1) - math.lgamma(n - k + 1)


def purity_bound(strata: Sequence[tuple[int, int, int]], level: float = 0.95, sided: Literal["lower", "upper"] = "lower") -> Interval:
    """The share of kept rows that is good, with a one-sided bound for any number of looks, from (good, labels, rows) of strata labelled at random.

    The estimate weighs each stratum by its rows: Horvitz and Thompson (1952) with the inclusion probabilities labels / rows. The bound adds up what
    :func:`bound_at_any_look` says of each; of 1 - level each has its share by rows, so that all hold together (Bonferroni), at all looks, however the labels
    were shared out: conservative where there are several. A stratum labelled through is known; one without a label is bounded by 0 and 1 and leaves the
    estimate NaN; all NaN without labels at all.
    """
    _check_level(level)
    for good, labels, rows in strata:
        if not 0 <= good <= labels <= rows:
            raise ValueError(f"{good} good of {labels} labels of {rows} rows: each must be at most the next")
    everything, n = sum(rows for _, _, rows in strata), sum(labels for _, labels, _ in strata)
    if n == 0:
        return _undefined(0, level)
    value, bound = 0.0, 0
    for good, labels, rows in strata:
        if rows:
            value += (good / labels if labels else math.nan) * rows / everything
            bound += bound_at_any_look(good, labels, rows, 1 - (1 - level) * rows / everything, sided)
    low, high = (bound / everything, 1.0) if sided == "lower" else (0.0, bound / everything)
    method = "every row labelled" if n == everything else f"martingale{' by stratum' if len(strata) > 1 else ''}, at any look"
    return Interval(value=value, low=low, high=high, n=n, level=level, method=method)


def weighted_share(hits: Sequence[bool], weights: Sequence[float], level: float = 0.95) -> Interval:
    """The share of ``hits`` by ``weights`` (Hajek 1971: one over the chance of being drawn), with a two-sided interval. NaN without any.

    Clopper-Pearson at Kish's effective size (sum w)^2 / sum w^2 (1965), as Korn and Graubard (1998) do for surveys: with equal weights it is
    Clopper-Pearson itself, and it does not degenerate at 0 or all. ``Interval.n`` counts the hits and misses, not the effective size.
    """
    _check_level(level)
    w = np.asarray(weights, dtype=float)
    if not len(w):
        return _undefined(0, level)
    share, size, tail = float(w[np.asarray(hits, dtype=bool)].sum() / w.sum()), float(w.sum() ** 2 / (w * w).sum()), (1 - level) / 2
    x = share * size
    low = 0.0 if not any(hits) else float(betaincinv(x, size - x + 1, tail))
    high = 1.0 if all(hits) else float(betaincinv(x + 1, size - x, 1 - tail))
    return Interval(value=share, low=low, high=high, n=len(w), level=level, method="Clopper-Pearson at the effective n")


def labels_needed(strata: Sequence[tuple[int, int, int]], bar: float, level: float = 0.95) -> int | None:
    """How many labels more, all good, put the lower bound of ``purity_bound`` at ``bar`` or over: 0 where it is there, None where none would.

    They go to the strata in equal shares while there are rows left. 29 for a bar of 0.9 at level 0.95 and many rows, fewer of few.
    """
    if not 0 < bar < 1:
        raise ValueError(f"a bar lies between 0 and 1, got {bar}")

    def clears(more: int) -> bool:
        added = _shared_out(more, [rows - labels for _, labels, rows in strata])
        then = [(good + extra, labels + extra, rows) for (good, labels, rows), extra in zip(strata, added, strict=True)]
        return purity_bound(then, level).low >= bar  # NaN, without labels, clears nothing

    low, high = 0, sum(rows - labels for _, labels, rows in strata)
    if not clears(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if clears(middle) else (middle + 1, high)
    return low


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> tuple[float, float, int]:
    """Agreement of labellers: (share of pairs that agree, Krippendorff's alpha for nominal values, units), units holding what each labeller said.

    Units with fewer than two values say nothing and are left out, so labellers may have labelled different ones. alpha = 1 - observed over
    expected disagreement, from the coincidence matrix (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"): 1 is perfect, 0 what
    chance gives. NaN without units, and alpha also where only one value was ever given: then chance would agree as well.
    """
    pairs, totals = Counter[tuple[str, str]](), Counter[str]()
    counted = [Counter(values) for values in units if len(values) > 1]
    agreed: list[float] = []
    for said in counted:
        m = said.total()
        for one, many in said.items():
            totals[one] += many
            for other, others in said.items():
                pairs[one, other] += many * (others - (one == other)) / (m - 1)  # type: ignore[assignment]  # shares, by the definition
        agreed.append(sum(many * (many - 1) for many in said.values()) / (m * (m - 1)))
    if not counted:
        return math.nan, math.nan, 0
    n = totals.total()
    observed = sum(share for (one, other), share in pairs.items() if one != other)
    expected = sum(a * b for one, a in totals.items() for other, b in totals.items() if one != other)
    return float(np.mean(agreed)), 1 - (n - 1) * observed / expected if expected else math.nan, len(counted)


def purity_forecast(tpr: float, fpr: float, observed: float) -> float:
    """The share of passes that is truly good, forecast from a verifier's error rates and the pass rate ``observed`` with it.

    True rate p = (observed - FPR) / (TPR - FPR) (Rogan and Gladen 1978), clipped to [0, 1]; purity TPR p / (TPR p + FPR (1 - p)). NaN where
    TPR <= FPR (the verifier says nothing) and where nothing would pass.
    """
    for name, rate in {"tpr": tpr, "fpr": fpr, "observed": observed}.items():
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} is {rate}: a rate lies between 0 and 1")
    if tpr <= fpr:
        return math.nan
    p = min(max((observed - fpr) / (tpr - fpr), 0.0), 1.0)
    passing = tpr * p + fpr * (1 - p)
    return tpr * p / passing if passing else math.nan


def beta_prior(counts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The Beta(a, b) that pass rates of tasks were drawn from, fitted to (passes, tries) of each: empirical Bayes (Morris 1983).

    Maximum of the beta-binomial likelihood (Skellam 1948) over a grid, with a weak prior that decides where the data cannot: a Beta(2, 2) on
    the mean, and on a + b a log-normal around 2, since one try of each task says nothing of how rates differ. a, b > 0. Passes and fails
    exchanged exchange a and b.
    """
    logits = np.linspace(-6.0, 6.0, 41)
    mean, size = np.meshgrid(1 / (1 + np.exp(-logits)), np.geomspace(0.1, 200.0, 25))
    a, b = mean * size, (1 - mean) * size
    fit = np.log(mean) + np.log1p(-mean) - np.log(size / 2) ** 2 / (2 * 1.5**2)
    for (passes, tries), tasks in sorted(Counter(counts).items()):
        if not 0 <= passes <= tries:
            raise ValueError(f"{passes} passes in {tries} tries: passes must lie between 0 and the tries")
        made = gammaln(a + passes) - gammaln(a) + gammaln(b + tries - passes) - gammaln(b)
        fit += tasks * (made - gammaln(size + tries) + gammaln(size))
    best = np.unravel_index(np.argmax(fit), fit.shape)
    return float(a[best]), float(b[best])


def chance_of_new(found: Sequence[tuple[int, int]], ahead: Floats) -> Floats:
    """The chance that a task's next success is a solution not seen before, from (successes, distinct solutions) of each task.

    ``ahead`` and what is returned have shape (tasks, any): the chance after so many more successes. 1 for a task without a success.

    Ewens' sampling formula (1972) is the chance of d distinct solutions among s successes, theta being how diverse they are, and
    theta / (theta + s) what Hoppe's urn (1984) says of the next. How theta differs between tasks is fitted on a grid by expectation maximisation
    (Kiefer and Wolfowitz 1956), with one imagined task spread evenly over it. The share of solutions seen once (Good 1953, after Turing)
    estimates the same chance, but of one or two successes it says 0 or 1.
    """
    theta = np.geomspace(0.03, 1000.0, 10)
    s, d = (np.array(column, dtype=float)[:, None] for column in zip(*found, strict=True))
    if (d > s).any() or ((s > 0) & (d < 1)).any():
        raise ValueError("there are at least one and at most as many distinct solutions as successes")
    likely = np.exp(d * np.log(theta) + gammaln(theta) - gammaln(theta + s))
    share = np.full(len(theta), 1 / len(theta))
    telling = likely[s[:, 0] >= 2]  # fewer successes say nothing of theta, and would only slow the steps
    for _ in range(50):
        belongs = telling * share
        belongs /= belongs.sum(axis=1, keepdims=True)
        share = (belongs.sum(axis=0) + 1 / len(theta)) / (len(belongs) + 1)
    belongs = likely * share
    belongs /= belongs.sum(axis=1, keepdims=True)
    return np.asarray((belongs[:, :, None] * theta[:, None] / (theta[:, None] + s[:, :, None] + ahead[:, None, :])).sum(axis=1))


def expected_distinct(counts: Sequence[int], m: int) -> float:
    """How many different things ``m`` draws hold, in expectation, from how often each was seen: rarefaction. In [1, m].

    Sum over the things of 1 - C(n - c, m) / C(n, m), c being the count of one and n of all (Hurlbert 1971, "The nonconcept of species diversity"): the mean
    over all subsets of m of what was seen, and unbiased for m new draws (Smith and Grassle 1977), so that counts of unequal size can be compared at
    the same m. ValueError unless 1 <= m <= n.
    """
    n = _drawn(counts, m, 1)
    return sum(pass_at_k(n, c, m) for c in counts)


def expected_entropy(counts: Sequence[int], m: int) -> float:
    """Shannon entropy in nats as far as ``m`` draws can see it, from how often each thing was seen. From 0 to 1 + 1/2 + ... + 1/(m - 1).

    Entropy is the sum over k >= 1 of p (1 - p)^k / k over all things (Good 1953; Chao, Wang and Jost 2013, "Entropy and the species accumulation curve"). Its
    terms with k < m have the unbiased estimates (c / n) C(n - c, k) / C(n - 1, k) / k, and are all that m draws tell: less than the entropy, and the same
    part of it on both sides of a comparison. ValueError unless 2 <= m <= n.
    """
    n = _drawn(counts, m, 2)
    return sum(c / n * math.comb(n - c, k) / math.comb(n - 1, k) / k for c in counts for k in range(1, m))


def _drawn(counts: Sequence[int], m: int, least: int) -> int:
    if (n := sum(counts)) < m or m < least or min(counts) < 0:
        raise ValueError(f"{m} draws need {least} <= m <= n, and n is {n}")
    return n


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """How far two distributions are apart, in bits: 0 where they are the same, 1 where they share nothing (Lin 1991, "Divergence measures based on
    the Shannon entropy").

    ``p`` and ``q`` are weights of 0 or more over the last axis and need not sum to 1. NaN where either has no weight at all.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
        middle = (p + q) / 2
        bits = sum(np.where(side > 0, side * np.log2(side / middle), 0.0).sum(axis=-1) for side in (p, q)) / 2
    return np.asarray(np.where(np.isnan(p + q).any(axis=-1), np.nan, np.clip(bits, 0.0, 1.0)))


Weights = Mapping[str, Mapping[str, float]]
"""How much weight each symbol has, by family."""


def cluster_divergence(
    splits: Sequence[tuple[Weights, Weights, Weights]], level: float = 0.95, seed: int = 0, resamples: int = 1000
) -> tuple[Interval, Interval, Interval]:
    """Jensen-Shannon divergence in bits beside what chance alone gives: (A from C, A from B, the first minus the second).

    Each of ``splits`` holds A and B, two halves of what one agent did, and C, as much of what another did. A divergence of few counts is too large,
    and equally so for both pairs, so only the difference can be read by itself: over 0, the two agents differ by more than the first from itself.
    Averaged over the splits.

    Each interval is the estimate plus and minus Student's t (G - 1) times its standard error over resampled families (Efron 1979): percentiles would
    add the upward bias of few counts once more. ``n`` counts the families. All NaN where a side is empty, bounds also under 2 families.
    """
    _check_level(level)
    families = sorted({family for split in splits for side in split for family, weights in side.items() if weights})
    n = len(families)
    if not n:
        return (_undefined(0, level),) * 3
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples if n > 1 else 0)
    counts = np.vstack([np.ones((1, n)), drawn])  # the first is what was seen
    between = np.mean([_apart(a, c, families, counts) for a, _, c in splits], axis=0)
    within = np.mean([_apart(a, b, families, counts) for a, b, _ in splits], axis=0)

    def interval(found: Floats, low: float) -> Interval:
        value, again = float(found[0]), found[1:][~np.isnan(found[1:])]
        if n < 2 or math.isnan(value) or len(again) < 2:
            return _undefined(n, level, value)
        half = float(stdtrit(n - 1, (1 + level) / 2)) * float(again.std(ddof=1))
        return Interval(
            value=value, low=max(value - half, low), high=min(value + half, 1.0), n=n, level=level, method="cluster bootstrap t"
        )

    return interval(between, 0.0), interval(within, 0.0), interval(between - within, -1.0)


def relevel(interval: Interval, level: float) -> Interval:
    """A symmetric t interval, such as those of ``cluster_divergence``, at another level: the same standard error, another quantile."""
    _check_level(level)
    degrees = max(interval.n - 1, 1)
    wider = float(stdtrit(degrees, (1 + level) / 2) / stdtrit(degrees, (1 + interval.level) / 2))
    half = wider * max(interval.value - interval.low, interval.high - interval.value)  # one side may be cut at the end of what can be
    return Interval(
        value=interval.value, low=interval.value - half, high=interval.value + half, n=interval.n, level=level, method=interval.method
    )


def _apart(one: Weights, other: Weights, families: Sequence[str], counts: Floats) -> Floats:
    """The divergence of two sides in each resample, ``counts`` of shape (resamples, families) being how often each family is in it.

    Symbols that only one side ever has count as one: each adds half its share, so their sum says all. What is left is as small as what is shared.
    """
    known = [{symbol for weights in side.values() for symbol in weights} for side in (one, other)]
    column = {symbol: at for at, symbol in enumerate(sorted(known[0] & known[1]))}
    tables = []
    for side, alone in ((one, len(column)), (other, len(column) + 1)):
        table = np.zeros((len(families), len(column) + 2))
        for row, family in enumerate(families):
            for symbol, weight in side.get(family, {}).items():
                table[row, column.get(symbol, alone)] += weight
        tables.append(table)
    block = max(1, 1_000_000 // len(tables[0][0]))  # keeps the arrays near 8 MB
    parts = [counts[start : start + block] for start in range(0, len(counts), block)]
    return np.concatenate([jensen_shannon(part @ tables[0], part @ tables[1]) for part in parts])


def _shared_out(many: int, room: Sequence[int]) -> list[int]:
    """``many`` in shares as equal as the ``room`` of each allows."""
    shares = [0] * len(room)
    order = sorted(range(len(room)), key=lambda at: room[at])
    for place, at in enumerate(order):
        shares[at] = min(room[at], many // (len(order) - place))
        many -= shares[at]
    return shares


def _standard_error(sums: Floats, sizes: Floats) -> float:
    """Cluster-robust standard error of the ratio ``sums.sum() / sizes.sum()``, with the G / (G-1) correction (2411.00640)."""
    residuals = sums - sums.sum() / sizes.sum() * sizes
    n = len(sums)
    error = math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(sizes.sum())
    return error if error > 1e-12 else 0.0  # what is left of equal values is rounding


def _expanded_percentile(sums: Floats, sizes: Floats, level: float, seed: int, resamples: int) -> tuple[float, float]:
    """Percentiles of the resampled ratio, at the tail that makes them as wide as Student's t."""
    n = len(sums)
    tail = float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + level) / 2)))
    low, high = np.quantile(_resampled(sums.tobytes(), sizes.tobytes(), seed, resamples), [tail, 1 - tail])
    return float(low), float(high)


@lru_cache(maxsize=4)  # a gain has two levels, and both want the same draws
def _resampled(sums_: bytes, sizes_: bytes, seed: int, resamples: int) -> Floats:
    sums, sizes = np.frombuffer(sums_), np.frombuffer(sizes_)
    n = len(sums)
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // n)  # keeps a block of draws near 16 MB
    alike = n * sizes[0] if (sizes == sizes[0]).all() else None
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(n, size=(min(rows, resamples - start), n))
        means.append(sums[drawn].sum(axis=1) / (sizes[drawn].sum(axis=1) if alike is None else alike))
    return np.concatenate(means)


def _by_task(results: Sequence[TaskResult]) -> dict[str, TaskResult]:
    by_task = {r.task: r for r in results}
    if len(by_task) < len(results):
        raise ValueError(f"{len(results) - len(by_task)} tasks are counted twice")
    return by_task


def level_text(level: float) -> str:
    """A confidence level, in (0, 1), in percent: ``95``, ``98.75``, ``99.997``. With digits enough that it never reads 100."""
    doubt = math.floor(math.log10(100 * (1 - level)))  # the place of its first digit
    return f"{100 * level:.{max(2, 1 - doubt)}f}".rstrip("0").rstrip(".")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, got {level}")


def _undefined(n: int, level: float, value: float = math.nan) -> Interval:
    return Interval(value=value, low=math.nan, high=math.nan, n=n, level=level, method="undefined")
