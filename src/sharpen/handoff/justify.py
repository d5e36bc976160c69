"""Is RL justified from here? A pure function from numbers to a paragraph; it knows nothing of models or files.

METHODS: RL is worth its cost when supervision has plateaued, pass@k is well above pass@1, there are tasks with mixed outcomes, and what the verifier
passes is truly good. A task that no try solves teaches RL nothing, unless its reward differs between tries.
"""

from __future__ import annotations

import math
from typing import Literal

from sharpen.records import Interval, Purity, Record

GROUP = 8  # tries of a task in one step of GRPO, as the emitted script has it


class Headroom(Record, frozen=True, kw_only=True):
    """What there is for RL to gain, what it would cost, and what it rests on.

    ``pass_1``, ``pass_k`` and their difference task by task, ``gap``, are of the chosen model on dev. Of the tasks that may train, by ``tries`` of each
    made by ``by`` ("" where it is the chosen model itself), ``solved`` always pass, ``mixed`` sometimes, ``never`` not once, at most ``bound`` of the time
    each (one-sided, 95 %); on ``graded`` of the last the score differs between tries. ``unmeasured`` have no try. ``climb`` is what became of the last
    rung that was trained. Costs are of one try, as the run had them; seconds are wall time with many tries at once.
    """

    k: int
    pass_1: Interval
    pass_k: Interval
    gap: Interval
    delta: float
    tries: int
    by: str
    solved: int
    mixed: int
    never: int
    graded: int
    unmeasured: int
    bound: float
    climb: Literal["better", "plateau", "undecided", "refused", "none"]
    verifier: str
    exact: bool
    purity: Purity | None = None
    prompt_tokens: float = math.nan
    sampled_tokens: float = math.nan
    seconds: float = math.nan
    dollars: float = 0.0


class Justification(Record, frozen=True, kw_only=True):
    """Whether RL is justified, and one paragraph that says why, with its numbers."""

    outcome: Literal["justified", "not yet", "not justified"]
    paragraph: str


def justify(seen: Headroom) -> Justification:
    """Whether RL is justified: on everything that speaks against it, the gravest first."""
    against = [reason for reason in (_impure(seen), _no_food(seen), _no_gap(seen)) if reason]
    not_yet = [] if against else [reason for reason in (_still_climbing(seen), _unaudited(seen), _unmeasured(seen)) if reason]
    outcome: Literal["justified", "not yet", "not justified"] = "not justified" if against else "not yet" if not_yet else "justified"
    head = {"justified": "RL is justified", "not yet": "RL is not justified yet", "not justified": "RL is not justified"}[outcome]
    ground = against or not_yet or ["supervision has plateaued, and there is something that it did not get"]
    sentences = [f"{head}: {'; '.join(ground)}.", _headroom(seen), _cost(seen), _limits(seen)]
    return Justification(outcome=outcome, paragraph=" ".join(sentence for sentence in sentences if sentence))


# ---------------------------------------------------------------- what speaks against it


def _impure(seen: Headroom) -> str:
    if seen.exact or seen.purity is None or seen.purity.outcome != "below":
        return ""
    return (
        f"labels show that too much of what {seen.verifier} passes is not good ({seen.purity.share.value:.0%}), "
        "and RL would learn to be passed, not to be good; mend the verifier"
    )


def _no_food(seen: Headroom) -> str:
    if seen.mixed or seen.graded or not seen.solved + seen.never:
        return ""
    if not seen.never:
        return f"all {seen.solved} tasks are always solved, so no try is better than another; take harder tasks"
    return (
        f"no task has both passes and fails, so no try is better than another and the gradient is zero; those never solved ({seen.never}) "
        "take a teacher, hints or a curriculum"
    )


def _no_gap(seen: Headroom) -> str:
    if seen.k < 2:
        return "pass@k was measured at k = 1 only, so whether it ever does better than it usually does is not known; raise evaluation.k"
    if math.isnan(seen.gap.high):
        return "the gap between pass@k and pass@1 is undefined on so few families; evaluate on more dev tasks"
    if seen.gap.high < seen.delta:
        return f"pass@{seen.k} is over pass@1 by at most {seen.gap.high:.1%}, under the smallest gain of interest, {seen.delta:.1%}"
    return ""


def _still_climbing(seen: Headroom) -> str:
    return {
        "better": "the last round of supervision was better than the one before; make another first",
        "undecided": "whether the last round of supervision was better is undecided; evaluate it on more dev families first",
        "none": "no round of training was tried; supervision comes first",
    }.get(seen.climb, "")


def _unaudited(seen: Headroom) -> str:
    if seen.exact or (seen.purity is not None and seen.purity.outcome == "clears"):
        return ""
    return f"the verifier {seen.verifier} is neither exact nor audited, and RL finds whatever passes without being good; label first (sharpen label)"


def _unmeasured(seen: Headroom) -> str:
    if seen.solved + seen.mixed + seen.never:
        return ""
    return f"no try was made at the {seen.unmeasured} tasks that may train, so how many of them are mixed is not known; sharpen sample --split train tells"


# ---------------------------------------------------------------- the numbers


def _headroom(seen: Headroom) -> str:
    said = f"On dev it passes {_rate(seen.pass_1)} of the time (pass@1)"
    if seen.k > 1:
        said += f" and {_rate(seen.pass_k)} with {seen.k} tries: RL can turn at most about that difference, {_rate(seen.gap)}, into pass@1 at once"
    said += "."
    measured = seen.solved + seen.mixed + seen.never
    if measured:
        whose = "" if not seen.by else f" of {seen.by} (the chosen model has made none there)"
        said += (
            f" Of {measured} train tasks, by {seen.tries} tries{whose} each: always solved {seen.solved}; mixed, which is what RL learns from, {seen.mixed}; "
            f"never solved {seen.never}."
        )
    return said


def _cost(seen: Headroom) -> str:
    food = seen.mixed or seen.unmeasured
    if not food or math.isnan(seen.sampled_tokens):
        return ""
    tries = food * GROUP
    said = (
        f"One pass over the {food} {'mixed' if seen.mixed else 'unmeasured'} tasks with {GROUP} tries of each costs {tries} tries, "
        f"about {_count(tries * seen.prompt_tokens)} prompt and {_count(tries * seen.sampled_tokens)} sampled tokens"
    )
    said += f", ${tries * seen.dollars:.2f}" if seen.dollars else ""
    said += f", {_minutes(tries * seen.seconds)} at the speed at which this run sampled" if not math.isnan(seen.seconds) else ""
    return f"{said}, the updates not counted. How many passes it takes, nothing here can tell."


def _limits(seen: Headroom) -> str:
    said = []
    if seen.never:
        flat = seen.never - seen.graded
        said.append(
            f"tasks never solved on which every try scores the same ({flat}, each passing at most {seen.bound:.0%} of the time, 95 %, one-sided): "
            "they take a teacher, hints or a curriculum"
            if flat
            else ""
        )
    if not seen.exact:
        audited = "" if seen.purity is None or not seen.purity.share.n else f" (purity at least {seen.purity.share.low:.0%})"
        said.append(f"the mistakes of the verifier {seen.verifier}{audited}, which it will find and use")
    said.append("a goal over pass@k that no try of the model reaches")
    cheaper = " Where the deployment can try several times and verify, best-of-n gives pass@k without any training." if seen.k > 1 else ""
    return f"What RL cannot fix here: {'; '.join(part for part in said if part)}.{cheaper}"


def _rate(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "an undefined share"
    bounds = "bounds undefined" if math.isnan(interval.low) else f"{100 * interval.low:.1f}, {100 * interval.high:.1f}"
    return f"{100 * interval.value:.1f} % [{bounds}; n {interval.n}]"


def _count(n: float) -> str:
    if math.isnan(n):
        return "an unknown number of"
    return f"{n:.0f}" if n < 1000 else f"{n / 1e3:.0f}k" if n < 999_500 else f"{n / 1e6:.1f}M"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
