"""Whether RL is justified from here, as a paragraph: what ``advisor.choose`` decided, with the numbers. It decides nothing itself.

It knows nothing of models or files. A task that no try solves teaches RL nothing, unless its reward differs between tries.
"""

from __future__ import annotations

import math
from typing import Literal

from sharpen.advisor import reason_line
from sharpen.records import Interval, Option, Purity, Record

GROUP = 8  # tries of a task in one step of GRPO, as the emitted script has it


class Headroom(Record, frozen=True, kw_only=True):
    """What there is for RL to gain, what it would cost, and what it rests on.

    ``pass_1``, ``pass_k`` and their difference task by task, ``gap``, are of the chosen model on dev. Of the tasks that may train, by ``tries`` of each
    made by ``by`` ("" where it is the chosen model itself), ``solved`` always pass, ``mixed`` sometimes, ``never`` not once, at most ``bound`` of the time
    each (one-sided, 95 %); on ``graded`` of the last the score differs between tries. ``unmeasured`` have no try. Costs are of one try, as the run had them;
    seconds are wall time with many tries at once.
    """

    k: int
    pass_1: Interval
    pass_k: Interval
    gap: Interval
    tries: int
    by: str
    solved: int
    mixed: int
    never: int
    graded: int
    unmeasured: int
    bound: float
    verifier: str
    exact: bool
    purity: Purity | None = None
    prompt_tokens: float = math.nan
    sampled_tokens: float = math.nan
    seconds: float = math.nan
    dollars: float = 0.0


class Justification(Record, frozen=True, kw_only=True):
    """Whether RL is justified, why, and one paragraph that says it with its numbers."""

    outcome: Literal["justified", "open", "not justified"]
    reason: str
    paragraph: str


def justify(rl: Option, seen: Headroom) -> Justification:
    """The paragraph on ``rl``, which is what ``advisor.choose`` says of RL from what stands."""
    outcome, head = _OUTCOMES[rl.standing]
    reason = reason_line(rl.reason)
    changes = f"What would change it: {rl.changes}." if rl.changes else ""
    sentences = [f"{head}: {reason}.", changes, _headroom(seen), _cost(seen), _limits(seen)]
    return Justification(outcome=outcome, reason=reason, paragraph=" ".join(sentence for sentence in sentences if sentence))


_OUTCOMES: dict[str, tuple[Literal["justified", "open", "not justified"], str]] = {
    "advised": ("justified", "RL is justified"),
    "open": ("open", "Whether RL is justified is open"),
    "refused": ("not justified", "RL is not justified"),
}


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
