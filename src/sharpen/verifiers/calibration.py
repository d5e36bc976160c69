"""From scores to passes: the lowest threshold whose precision is shown, by labels, to be over the bar."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from sharpen.errors import Refused
from sharpen.records import Interval, Record
from sharpen.stats import clopper_pearson


class Calibration(Record, frozen=True, kw_only=True):
    """A threshold and what speaks for it: of labelled tries at or over it, one of each of ``precision.n`` families, the share ``precision`` is good.

    ``precision`` is one-sided, at the level that it was tested at, which may be over the one asked for. ``found`` is the share of all good
    labelled tries that pass; ``labels`` counts all labels.
    """

    threshold: float
    precision: Interval
    found: float
    labels: int


def calibrate(
    scores: Sequence[float], labels: Sequence[bool], bar: float = 0.9, level: float = 0.95, families: Sequence[str] | None = None
) -> Calibration:
    """The lowest of the scores from which on tries are good with a precision over ``bar``, at one-sided confidence ``level`` for all that was looked at.

    Thresholds are tested from the highest down (fixed-sequence testing with several starts: Angelopoulos and others, Learn then Test, 2110.01052,
    section 5; each start has an equal share of 1 - level, and what a test that succeeds had goes on to the next: the fallback procedure,
    Wiens 2003), each by the exact binomial bound (Clopper and Pearson). Order and starts go by the scores alone, so choosing and measuring on the
    same labels is paid for. ``labels`` must be of tries drawn at random from those that will be judged, whatever their score. Tries of one of the
    ``families`` (of tasks; None: each try is its own) succeed and fail together, so at each threshold one of a family's tries counts, drawn at random:
    label many families rather than many tries of one. The labels must not be added to until it succeeds: each further look is one more test.

    ValueError for scores that are not finite or not as many as the labels, or a ``bar`` or ``level`` outside (0, 1). Refused where no threshold
    can be shown to be good enough, with the number of labels that would do.
    """
    if len(scores) != len(labels):
        raise ValueError(f"{len(scores)} scores and {len(labels)} labels: each label needs the score of its try")
    if not all(map(math.isfinite, scores)):
        raise ValueError("some scores are NaN or infinite; leave those tries out, and their labels")
    if not (0 < bar < 1 and 0 < level < 1):
        raise ValueError(f"bar is {bar} and level {level}: both lie between 0 and 1")
    families = [str(at) for at in range(len(scores))] if families is None else families
    if len(families) != len(scores):
        raise ValueError(f"{len(scores)} scores and {len(families)} families: each try needs the family of its task")
    kept = list(_cuts(scores, labels, families))
    chosen: tuple[float, int, int, float] | None = None
    carried, started = 0.0, 0
    starts = _starts(len(set(families)), bar, level)
    for threshold, count, good in kept:
        own = 0.0
        while started < len(starts) and count >= starts[started]:
            own += (1 - level) / len(starts)
            started += 1
        share = carried + own
        carried = 0.0
        if share and clopper_pearson(good, count, 1 - share, "lower").low >= bar:
            chosen, carried = (threshold, count, good, share), share
    if chosen is None:
        raise Refused(_lifts(kept, len(labels), bar, level))
    threshold, count, good, share = chosen
    precision = clopper_pearson(good, count, 1 - share, "lower")
    found = sum(label for score, label in zip(scores, labels, strict=True) if score >= threshold) / sum(labels)
    return Calibration(threshold=threshold, precision=precision, found=found, labels=len(labels))


def _cuts(scores: Sequence[float], labels: Sequence[bool], families: Sequence[str]) -> Iterator[tuple[float, int, int]]:
    """Every threshold that the scores offer, from the highest: with how many families have a try that passes, and how many of those drawn are good."""
    lots = random.Random(0)
    ranked = sorted(
        ((score, bool(label), family, lots.random()) for score, label, family in zip(scores, labels, families, strict=True)),
        key=lambda one: -one[0],
    )
    drawn: dict[str, tuple[float, bool]] = {}
    for place, (score, label, family, lot) in enumerate(ranked, 1):
        drawn[family] = min(drawn.get(family, (2.0, False)), (lot, label))
        if place == len(ranked) or ranked[place][0] != score:
            yield score, len(drawn), sum(good for _, good in drawn.values())


def _least(bar: float, alpha: float) -> int:
    """How many tries must pass, all of them good, for the bound to clear the bar at 1 - alpha."""
    return math.ceil(math.log(alpha) / math.log(bar) - 1e-9)


def _starts(labels: int, bar: float, level: float) -> list[int]:
    """Where tests begin, in tries that pass: at the fewest that could clear the bar, then at twice as many each, as often as there are labels for."""
    number = 1
    while _least(bar, (1 - level) / (number + 1)) * 2**number <= labels:
        number += 1
    first = _least(bar, (1 - level) / number)
    return [first * 2**at for at in range(number)]


def _lifts(kept: Sequence[tuple[float, int, int]], tries: int, bar: float, level: float) -> str:
    """Why no threshold will do, and how many labels would, if more of them were as these are."""
    labels = kept[-1][1] if kept else 0
    of = f", which are of {labels} families and count once for each" if labels < tries else ""
    said = f"no threshold is shown to pass {bar:.0%} good tries by these {tries} labels{of}"
    least = _least(bar, 1 - level)
    shares = [(count, good) for _, count, good in kept if count >= min(labels, 10)]  # of fewer, a share says nothing
    over = [(count, good) for count, good in shares if good > bar * count]
    if not labels or (labels < least and over):
        return f"{said}; at least {least} are needed, and all of the {least} tries with the highest scores must then be good"
    if not over:
        best = max(good / count for count, good in shares)
        return f"{said}: at best {best:.0%} are; more labels will not help, so use a better reward model, or a lower bar"
    times = 1.0
    while times < 100:
        times *= 1.1
        share = (1 - level) / len(_starts(int(labels * times), bar, level))
        if any(clopper_pearson(int(good * times), int(count * times), 1 - share, "lower").low >= bar for count, good in over):
            return f"{said}; about {math.ceil(labels * times)} would do, if as many of the highest scores are good among them"
    return f"{said}; it is too close to the bar for any number of labels worth making; lower the bar, or use a better reward model"
