"""What a student took over from its teacher beside the pass rate: how it goes about tasks, and how it fails.

Pure: judged tries in (``sampling.Pool``), records out; the same seed gives the same numbers. Every number is a mean over tasks, each task
counting once, with an interval over families. Tries that broken infrastructure ended are counted and left out.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from sharpen.chat.masks import without_ids
from sharpen.environments.acts import ANSWER, Act, acts, says_nothing, turns
from sharpen.evaluation import count
from sharpen.records import (
    Alike,
    AtEqualRate,
    Behaviour,
    Divergence,
    FaultRate,
    Faults,
    Interval,
    NewFault,
    Pair,
    Record,
    SameFault,
    SampleKey,
    Shift,
    Task,
    Trajectory,
    Transfer,
    Use,
    Verdict,
)
from sharpen.sampling import Pool
from sharpen.stats import Weights, cluster_bootstrap_mean, cluster_divergence, paired_gain, pass_interval, relevel, shared_level
from sharpen.verifiers.behaviour import Rules

DESCRIBED = "behaviour.json"  # beside demonstrations, a Behaviour; beside a rung, a Transfer
FAULTY = "faults.json"
FILTERED = "filtered.json"
CLOSE = 0.9  # the level of being alike: two one-sided tests at 5 % each (Schuirmann 1987)
SPLITS = 10  # of an agent's tries into halves
LISTED = 12  # tools or verbs
SHOWN = 8  # pairs of acts, and new faults with their trajectories


class Measure(NamedTuple):
    """``words`` for people. A ``count`` of one try, a ``share`` of something in it, or a share of what is ``given``, which few tries may have.

    ``tested``: it takes part in saying whether two agents are alike.
    """

    words: str
    kind: Literal["count", "share", "given"]
    tested: bool = True


MEASURES: dict[str, Measure] = {
    "turns": Measure("turns a try", "count"),
    "kinds": Measure("different tools or verbs a try", "count"),
    "characters": Measure("characters said a try", "count"),
    "tokens": Measure("tokens sampled a try", "count", tested=False),  # other tokenizers count otherwise
    "malformed": Measure("acts that cannot be read", "share"),
    "refused": Measure("acts refused", "share"),
    "tool_errors": Measure("acts that end in a tool's error", "share"),
    "repeats": Measure("acts done before, same state, same result", "share"),
    "failed_again": Measure("acts that failed before, same state", "share"),
    "empty": Measure("turns that say nothing", "share"),
    "erred": Measure("tries with an error", "share"),
    "looped": Measure("tries with a repeated act", "share"),
    "mends": Measure("of errors: the next act works", "given"),
    "recovers": Measure("of tries with an error: pass", "given"),
}

FAULTS: dict[str, str] = {
    "filtered": "a server's content filter stopped it",
    "crashed": "the program that it drove gave up",
    "overflow": "the conversation outgrew the context",
    "cut off": "a turn hit max_tokens",
    "not accepted": "the environment says that it is solved, the verifier does not",
    "lost": "the environment says that it is lost",
    "says nothing": "its answer is empty, or half of its turns are and it ran out of them",
    "malformed": "it ran out of turns, and half of its acts could not be read",
    "loop": "it ran out of turns, and half of its acts repeated others, or the last one did",
    "refused": "it ran out of turns, and half of its acts were refused",
    "tool errors": "it ran out of turns, and half of its acts ended in a tool's error",
    "out of turns": "it ran out of turns for none of these reasons",
    "used no tool": "it answered without a call although tools were offered",
    "gave up": "it answered right after an error",
    "wrong answer": "it answered, and not rightly",
    "other": "none of these",
}
"""Classes of failure and what they mean. The first that fits, in this order, is a try's class: each failing try has one."""


class Margins(Record, frozen=True, kw_only=True):
    """The smallest differences of interest: in pass rate, in a share, in a count as a share of the teacher's, and in bits of divergence."""

    passes: float = 0.1
    shares: float = 0.1
    counts: float = 0.25
    bits: float = 0.1

    @property
    def rule(self) -> str:
        """How it is told whether a student is like its teacher."""
        return (
            f"Like its teacher in a number: the 90 % interval of the paired difference lies within {100 * self.passes:g} points of pass rate, "
            f"{100 * self.shares:g} points of a share, {100 * self.counts:g} % of a count, {self.bits:g} bits of divergence beyond the teacher's own. "
            "Unlike: the difference is larger than that, and its interval leaves 0 out, at 95 % shared among all numbers of behaviour (Bonferroni). "
            "It behaves unlike its teacher where one number does, like it where all do that every try has, and else it is open. "
            "A student that passes like its teacher and behaves unlike it is flagged, and one that behaves like it and passes unlike it."
        )


# ---------------------------------------------------------------- one try


def fault_of(trajectory: Trajectory, verdict: Verdict, done: Sequence[Act] | None = None) -> str:
    """The class of a failing try, one of ``FAULTS``; "" for a pass and for an error. By rules over the trajectory, in the order of ``FAULTS``.

    ``done`` are its acts, where they are known already; here and below.
    """
    if verdict.outcome != "fail" or trajectory.stop in ("error", "cancelled"):
        return ""
    stops = {"filtered": "filtered", "crashed": "crashed", "overflow": "overflow", "token_limit": "cut off"}
    if trajectory.stop in stops:
        return stops[trajectory.stop]
    outcome = trajectory.outcome
    done = [act for act in (acts(trajectory) if done is None else done) if not act.thread]
    if trajectory.stop == "done" and (outcome.get("won") is True or outcome.get("success") is True):
        return "not accepted"
    if outcome.get("lost") is True:
        return "lost"
    if trajectory.stop == "turn_limit" or outcome.get("out_of_turns") is True:
        return _ran_out(done)
    if not done or done[-1].empty or outcome.get("answer") == "":
        return "says nothing"
    if trajectory.stop != "done" or (done[-1].kind != "answer" and ("won" in outcome or "moves" in outcome)):
        return "other"
    called = [act for act in done if act.kind == "call"]
    if not called and trajectory.tools:
        return "used no tool"
    return "gave up" if called and called[-1].trouble else "wrong answer"


def _ran_out(done: Sequence[Act]) -> str:
    def half(of: Callable[[Act], bool]) -> bool:
        return 2 * sum(map(of, done)) >= max(len(done), 1)

    if not done or half(lambda act: act.empty):
        return "says nothing"
    if half(lambda act: act.trouble == "malformed"):
        return "malformed"
    if half(lambda act: act.repeated) or done[-1].repeated:
        return "loop"
    if half(lambda act: act.trouble == "refused"):
        return "refused"
    return "tool errors" if half(lambda act: act.trouble == "tool error") else "out of turns"


def measured(trajectory: Trajectory, passed: bool, done: Sequence[Act] | None = None) -> dict[str, float]:
    """The ``MEASURES`` of one try. NaN where it says nothing of one: shares of nothing, tokens that nobody counted, recovery without an error."""
    done, said = acts(trajectory) if done is None else done, turns(trajectory)
    errors = [at for at, act in enumerate(done) if act.trouble]

    def share(hits: Iterable[bool], of: int) -> float:
        return sum(hits) / of if of else math.nan

    def mended(at: int) -> bool:
        after = done[at + 1] if at + 1 < len(done) else None
        return after is not None and after.thread == done[at].thread and not after.trouble and not after.empty

    return {
        "turns": float(len(said)),
        "kinds": float(len({act.name for act in done})),
        "characters": float(
            sum(len(m.content) + len(m.reasoning or "") + sum(len(c.name) + len(c.arguments) for c in m.tool_calls) for m in said)
        ),
        "tokens": _tokens(trajectory),
        "malformed": share((act.trouble == "malformed" for act in done), len(done)),
        "refused": share((act.trouble == "refused" for act in done), len(done)),
        "tool_errors": share((act.trouble == "tool error" for act in done), len(done)),
        "repeats": share((act.repeated for act in done), len(done)),
        "failed_again": share((act.failed_again for act in done), len(done)),
        "empty": share(map(says_nothing, said), len(said)),
        "erred": float(bool(errors)),
        "looped": float(any(act.repeated for act in done)),
        "mends": share(map(mended, errors), len(errors)),
        "recovers": float(passed) if errors else math.nan,
    }


def _tokens(trajectory: Trajectory) -> float:
    """Tokens of the try itself, not of those that it was chosen from."""
    outputs = [turn.output for turn in (*trajectory.turns, *(turn for thread in trajectory.threads for turn in thread.turns))]
    if outputs and all(output is not None for output in outputs):
        return float(sum(len(output or ()) for output in outputs))
    return float(trajectory.cost.sampled_tokens) if trajectory.choice is None and trajectory.cost.sampled_tokens else math.nan


def pairs_of(done: Sequence[Act]) -> Counter[str]:
    """Two acts in a row, by their names, the start and the end being acts too: ``open → take``. Of every conversation by itself."""
    names: dict[int, list[str]] = defaultdict(list)
    for act in done:
        names[act.thread].append(act.name)
    found = Counter[str]()
    for sequence in names.values() or [[]]:
        found.update(f"{one} → {then}" for one, then in pairwise(["(start)", *sequence, "(end)"]))
    return found


# ---------------------------------------------------------------- many tries


@dataclass(frozen=True)
class _Try:
    key: SampleKey
    passed: bool
    fault: str
    numbers: dict[str, float]
    pairs: Counter[str]
    names: frozenset[str]


@dataclass(frozen=True)
class _Seen:
    """The tries of a pool that nothing broke, by task."""

    pool: Pool
    agent: str
    tries: dict[str, list[_Try]]
    errors: int

    def family(self, task: str) -> str:
        return self.pool.tasks[task].family

    def means(self, value: Callable[[_Try], float]) -> dict[str, float]:
        """The mean of each task's tries that have a value; tasks without one are left out."""
        found = {task: [v for one in tries if not math.isnan(v := value(one))] for task, tries in self.tries.items()}
        return {task: sum(values) / len(values) for task, values in found.items() if values}


def _see(pool: Pool) -> _Seen:
    tries: dict[str, list[_Try]] = defaultdict(list)
    agents, errors = Counter[str](), 0
    for key in pool.wanted:
        trajectory, verdict = pool.trajectories[key], pool.verdicts[key]
        agents[trajectory.agent] += 1
        if verdict.outcome == "error" or trajectory.stop in ("error", "cancelled"):
            errors += 1
            continue
        done, passed = acts(trajectory), verdict.outcome == "pass"
        fault, names = fault_of(trajectory, verdict, done), frozenset(act.name for act in done if act.name != ANSWER)
        tries[key.task].append(_Try(key, passed, fault, measured(trajectory, passed, done), pairs_of(done), names))
    return _Seen(pool, agents.most_common(1)[0][0] if agents else "", dict(tries), errors)


def as_pool(trajectories: Iterable[Trajectory], verdicts: Iterable[Verdict], families: Mapping[str, str] | None = None) -> Pool:
    """Judged tries as a pool, where there is none. A task is its own family unless ``families`` names another. Tries without a verdict are left out."""
    judged = {verdict.key: verdict for verdict in verdicts}
    known = {trajectory.key: trajectory for trajectory in trajectories if trajectory.key in judged}
    tasks = {key.task: Task(key=key.task, family=(families or {}).get(key.task, key.task)) for key in known}
    return Pool(tasks, tuple(known), known, judged)


def describe(pool: Pool, seed: int = 0) -> Behaviour:
    """How the agent that made these tries goes about tasks. Of no tries all is NaN."""
    return _behaviour(_see(pool), seed)


def _behaviour(seen: _Seen, seed: int) -> Behaviour:
    every = [one for tries in seen.tries.values() for one in tries]
    used = Counter(name for one in every for name in one.names)
    uses = [Use(name=name, share=_mean(seen, lambda one, name=name: float(name in one.names), seed)) for name, _ in _commonest(used)]  # type: ignore[misc]
    return Behaviour(
        agent=seen.agent,
        tries=len(seen.pool.wanted),
        errors=seen.errors,
        tasks=len(seen.tries),
        pass_rate=pass_interval(count(seen.pool, list(seen.pool.tasks.values())), 1, 0.95, seed),
        measures={name: _mean(seen, lambda one, name=name: one.numbers[name], seed) for name in MEASURES},  # type: ignore[misc]
        uses=tuple(uses),
        others=len(used) - len(uses),
        faults=dict(Counter(one.fault for one in every if one.fault).most_common()),
    )


def _commonest(used: Counter[str]) -> list[tuple[str, int]]:
    return sorted(used.items(), key=lambda item: (-item[1], item[0]))[:LISTED]


def _mean(seen: _Seen, value: Callable[[_Try], float], seed: int) -> Interval:
    return _over_families(seen, seen.means(value), seed)


def _over_families(
    seen: _Seen, by_task: Mapping[str, float], seed: int, level: float = 0.95, signed: bool = False, resamples: int = 2000
) -> Interval:
    return _by_family(by_task, seen.family, seed, level, signed, resamples)


def _by_family(
    by_task: Mapping[str, float],
    family: Callable[[str], str],
    seed: int,
    level: float = 0.95,
    signed: bool = False,
    resamples: int = 2000,
) -> Interval:
    values: dict[str, list[float]] = defaultdict(list)
    for task, value in by_task.items():
        values[family(task)].append(value)
    most = max([1.0, *map(abs, by_task.values())])
    return cluster_bootstrap_mean(values, level, seed, resamples, span=(-most if signed else 0.0, most))


# ---------------------------------------------------------------- teacher and student


def compare(teacher: Pool, before: Pool, after: Pool, seed: int = 0, margins: Margins | None = None) -> Transfer:
    """What a student took over: ``before`` and ``after`` are its tries before and after training, all on the same tasks as the ``teacher``'s.

    Differences are over the tasks that both sides played; without any they are undefined, and nothing is flagged.
    """
    margins = margins or Margins()
    taught, was, now = _see(teacher), _see(before), _see(after)
    both = [task for task in now.tries if task in taught.tries]
    counts = [count(seen.pool, [seen.pool.tasks[task] for task in both]) for seen in (taught, now)]
    gain = paired_gain(counts[0], counts[1], CLOSE, seed, (taught.agent, now.agent))
    apart, apart_before = (_divergence(taught, other, seed) for other in (now, was))
    tested = [name for name, measure in MEASURES.items() if measure.tested and _differences(taught, now, name)]
    level = shared_level(len(tested) + 1)
    shifts = tuple(_shift(name, taught, was, now, margins, level, seed) for name in MEASURES)
    passes = _alike(gain.printed, margins.passes, lambda at: gain.deciding if at == CLOSE else gain.printed, 0.95)
    moved = [shift for shift in shifts if shift.measure in tested]
    pairs = _alike(apart.excess, margins.bits, lambda at: relevel(apart.excess, at), level)
    behaves = _together([pairs, *(s.alike for s in moved)], [pairs, *(s.alike for s in moved if MEASURES[s.measure].kind != "given")])
    return Transfer(
        teacher=_behaviour(taught, seed),
        before=_behaviour(was, seed),
        after=_behaviour(now, seed),
        gain=gain,
        shifts=shifts,
        apart=apart,
        apart_before=apart_before,
        passes=passes,
        behaves=behaves,
        flags=_flags(gain.printed, passes, behaves, moved, apart, pairs),
        rule=margins.rule,
    )


def _differences(one: _Seen, other: _Seen, name: str) -> dict[str, float]:
    """``other`` minus ``one`` in a measure, task by task, where both have it."""
    before, after = (seen.means(lambda t: t.numbers[name]) for seen in (one, other))
    return {task: after[task] - before[task] for task in after if task in before}


def _shift(name: str, taught: _Seen, was: _Seen, now: _Seen, margins: Margins, level: float, seed: int) -> Shift:
    measure, found = MEASURES[name], _differences(taught, now, name)
    usual = _mean(taught, lambda one: one.numbers[name], seed).value if measure.kind == "count" else math.nan
    margin = margins.counts * usual if measure.kind == "count" else margins.shares
    printed = _over_families(now, found, seed, signed=True)
    return Shift(
        measure=name,
        from_teacher=printed,
        from_before=_over_families(now, _differences(was, now, name), seed, signed=True),
        margin=margin,
        alike=_alike(printed, margin, lambda at: _over_families(now, found, seed, at, signed=True, resamples=10_000), level),
    )


def _alike(printed: Interval, margin: float, at: Callable[[float], Interval], level: float) -> Alike:
    """``at`` gives the interval at another level, ``level`` that of being unlike. NaN is open."""
    if abs(printed.value) <= margin:
        close = at(CLOSE)
        return "like" if -margin <= close.low and close.high <= margin else "open"
    deciding = at(level)
    return "unlike" if deciding.low > 0 or deciding.high < 0 else "open"


def _together(any_of: Sequence[Alike], all_of: Sequence[Alike]) -> Alike:
    """Unlike where one is; like where all are."""
    if "unlike" in any_of:
        return "unlike"
    return "like" if set(all_of) == {"like"} else "open"


def _flags(gain: Interval, passes: Alike, behaves: Alike, moved: Sequence[Shift], apart: Divergence, pairs: Alike) -> tuple[str, ...]:
    by = f"{100 * gain.value:+.1f} points of pass rate [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    found = []
    if gain.low > 0:
        found.append(f"the student passes more often than its teacher: {by}")
    if passes == "like" and behaves == "unlike":
        unlike = [_in_words(shift) for shift in moved if shift.alike == "unlike"]
        unlike += [f"other sequences of acts, {_bits(apart.excess)} beyond the teacher's own"] if pairs == "unlike" else []
        found.append(f"the student passes like its teacher ({by}) and behaves unlike it: {'; '.join(unlike)}")
    if passes == "unlike" and behaves == "like":
        found.append(f"the student behaves like its teacher and passes {'more' if gain.value > 0 else 'less'} often: {by}")
    return tuple(found)


def _in_words(shift: Shift) -> str:
    measure, by = MEASURES[shift.measure], shift.from_teacher
    factor, unit = (1, "") if measure.kind == "count" else (100, " points")
    return f"{measure.words} {factor * by.value:+.1f}{unit} [{factor * by.low:+.1f}, {factor * by.high:+.1f}]"


def _bits(interval: Interval) -> str:
    return f"{interval.value:.2f} bits [{interval.low:.2f}, {interval.high:.2f}]"


def divergence(one: Pool, other: Pool, seed: int = 0) -> Divergence:
    """How far the sequences of acts of two agents are apart, over the tasks that both played. NaN where there are none."""
    return _divergence(_see(one), _see(other), seed)


def _divergence(one: _Seen, other: _Seen, seed: int) -> Divergence:
    tasks = sorted(task for task in one.tries if task in other.tries)
    several = [task for task in tasks if len(one.tries[task]) > 1]
    within = 2 * len(several) >= max(len(tasks), 1)
    draw = random.Random(f"{seed}/halves")
    splits = []
    for _ in range(SPLITS):
        if within:
            halves = [_halves(one.tries[task], other.tries[task], draw) for task in several]
            sides = [{task: half[side] for task, half in zip(several, halves, strict=True)} for side in range(3)]
        else:
            families = sorted({one.family(task) for task in tasks})
            chosen = set(draw.sample(families, len(families) // 2))
            first = [task for task in tasks if one.family(task) in chosen]
            rest = [task for task in tasks if one.family(task) not in chosen]
            sides = [
                {task: one.tries[task] for task in first},
                {task: one.tries[task] for task in rest},
                {task: other.tries[task] for task in rest},
            ]
        splits.append(tuple(_weights(one, side) for side in sides))
    between, own, excess = cluster_divergence(splits, seed=seed)  # type: ignore[arg-type]
    return Divergence(between=between, within=own, excess=excess, halves="tries" if within else "tasks", pairs=_pairs(one, other, tasks))


def _halves(one: Sequence[_Try], other: Sequence[_Try], draw: random.Random) -> tuple[list[_Try], list[_Try], list[_Try]]:
    """Two halves of one's tries of a task, and as many of the other's."""
    many = min(len(one) // 2, len(other))
    mine = draw.sample(list(one), 2 * many)
    return mine[:many], mine[many:], draw.sample(list(other), many)


def _weights(seen: _Seen, tries: Mapping[str, Sequence[_Try]]) -> Weights:
    """The share of each pair in a task's tries, summed by family: every task weighs the same, however long its tries are."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for task, those in tries.items():
        pairs = sum((one.pairs for one in those), Counter[str]())
        for pair, number in pairs.items():
            found[seen.family(task)][pair] += number / pairs.total()
    return found


def _pairs(one: _Seen, other: _Seen, tasks: Sequence[str]) -> tuple[Pair, ...]:
    """The pairs that add most to the divergence."""
    shares: list[dict[str, float]] = []
    for seen in (one, other):
        total: dict[str, float] = defaultdict(float)
        for weights in _weights(seen, {task: seen.tries[task] for task in tasks}).values():
            for pair, weight in weights.items():
                total[pair] += weight / len(tasks)
        shares.append(total)

    def adds(pair: str) -> float:
        sides = [side.get(pair, 0.0) for side in shares]
        return sum(side * math.log2(2 * side / sum(sides)) for side in sides if side)

    most = sorted(shares[0].keys() | shares[1].keys(), key=lambda pair: (-adds(pair), pair))[:SHOWN]
    return tuple(Pair(acts=pair, one=shares[0].get(pair, 0.0), other=shares[1].get(pair, 0.0)) for pair in most if adds(pair) > 1e-9)


# ---------------------------------------------------------------- faults


def faults(teacher: Pool, before: Pool, after: Pool, control: Pool | None = None, seed: int = 0) -> Faults:
    """How they fail, class by class; how often the student fails as its teacher does, beside itself before and a self-trained ``control``; and what is new.

    Over the tasks that all of them played.
    """
    seen = {"teacher": _see(teacher), "before": _see(before), "after": _see(after)}
    seen |= {"control": _see(control)} if control is not None else {}
    tasks = [task for task in seen["after"].tries if all(task in one.tries for one in seen.values())]
    held = {role: _Seen(one.pool, one.agent, {task: one.tries[task] for task in tasks}, one.errors) for role, one in seen.items()}
    met = Counter(one.fault for side in held.values() for tries in side.tries.values() for one in tries if one.fault)
    every = [(task, fault) for task in tasks for fault in FAULTS if _new(held, task, fault)]
    every.sort(key=lambda at: (-_share(held["after"], *at), -_share(held["teacher"], *at), at))
    return Faults(
        rates=tuple(_rate(held, fault, seed) for fault in FAULTS if met[fault]),
        same=tuple(_same(held, other, seed) for other in ("before", "control") if other in held),
        new=tuple(_side_by_side(held, task, fault) for task, fault in every[:SHOWN]),
        many=len(every),
    )


def _share(seen: _Seen, task: str, fault: str) -> float:
    tries = seen.tries[task]
    return sum(one.fault == fault for one in tries) / len(tries)


def _rate(held: Mapping[str, _Seen], fault: str, seed: int) -> FaultRate:
    shares = {role: {task: _share(seen, task, fault) for task in seen.tries} for role, seen in held.items()}
    change = {task: after - shares["before"][task] for task, after in shares["after"].items()}
    return FaultRate(
        fault=fault,
        shares={role: _over_families(held[role], by_task, seed) for role, by_task in shares.items()},
        change=_over_families(held["after"], change, seed, signed=True),
    )


def _same(held: Mapping[str, _Seen], other: str, seed: int) -> SameFault:
    taught, now, beside = held["teacher"], held["after"], held[other]
    kinds = [
        {task: Counter(one.fault for one in tries if one.fault) for task, tries in seen.tries.items()} for seen in (taught, now, beside)
    ]
    fails = [task for task, those in kinds[0].items() if those]
    common = [task for task in fails if kinds[1][task] and kinds[2][task]]

    def agrees(side: int) -> dict[str, float]:
        return {task: _agreement(kinds[0][task], kinds[side][task]) for task in common}

    student, others = agrees(1), agrees(2)
    rates = {
        role: _over_families(seen, {task: sum(one.passed for one in seen.tries[task]) / len(seen.tries[task]) for task in fails}, seed)
        for role, seen in (("teacher", taught), ("student", now), (other, beside))
    }
    return SameFault(
        other=other,
        tasks=len(common),
        student=_over_families(now, student, seed),
        others=_over_families(now, others, seed),
        difference=_over_families(now, {task: student[task] - others[task] for task in common}, seed, signed=True),
        passes=rates,
        at_equal_rate=_at_equal_rate(now, kinds, fails, seed),
    )


def _at_equal_rate(now: _Seen, kinds: Sequence[Mapping[str, Counter[str]]], fails: Sequence[str], seed: int) -> AtEqualRate:
    """Of the tasks that the teacher ``fails``. ``kinds`` are failing tries by task and class: the teacher's, the student's and the other's.

    The other's failing tries of a task are weighted until it fails there as often as the student. Which tasks count hangs on the teacher and the other alone:
    left to the student, tasks that it happened to pass would go.
    """
    taught, student, other = kinds
    common = [task for task in fails if other[task]]
    rate = {task: student[task].total() / len(now.tries[task]) for task in common}
    mine = {task: rate[task] * _agreement(taught[task], student[task]) if rate[task] else 0.0 for task in common}
    theirs = {task: rate[task] * _agreement(taught[task], other[task]) for task in common}
    return AtEqualRate(
        tasks=len(common),
        outside=len(fails) - len(common),
        student=_over_families(now, mine, seed),
        others=_over_families(now, theirs, seed),
        difference=_over_families(now, {task: mine[task] - theirs[task] for task in common}, seed, signed=True),
    )


def _agreement(one: Counter[str], other: Counter[str]) -> float:
    """The chance that a draw from each is the same."""
    return sum(many * other[fault] for fault, many in one.items()) / (one.total() * other.total())


def _new(held: Mapping[str, _Seen], task: str, fault: str) -> bool:
    return _share(held["before"], task, fault) == 0 < _share(held["after"], task, fault)


def _side_by_side(held: Mapping[str, _Seen], task: str, fault: str) -> NewFault:
    counts, shown = {}, {}
    for role, seen in held.items():
        tries = seen.tries[task]
        counts[role] = (sum(one.fault == fault for one in tries), len(tries))
        if role != "control":
            # Of the teacher the same fault says most, of the student before what it did right.
            likeness = {"before": lambda one: one.passed}.get(role, lambda one: one.fault == fault)
            shown[role] = without_ids(seen.pool.trajectories[max(tries, key=likeness).key])
    return NewFault(task=task, fault=fault, counts=counts, trajectories=shown)


# ---------------------------------------------------------------- known faults that are left out


def kept_out(rules: Rules, tries: Mapping[str, Iterable[Trajectory]], families: Mapping[str, str], seed: int = 0) -> tuple[FaultRate, ...]:
    """For each rule that is set, the share of each set of ``tries`` that breaks it, and the change from those called ``before`` to ``after``.

    Means over tasks, with intervals over ``families`` (a task that has none is its own). Tries that broke are left out. () where no rule is set.
    """
    found: dict[str, dict[str, dict[str, list[bool]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for role, those in tries.items():
        for one in those:
            for rule, broken in rules.each(one).items() if one.stop not in ("error", "cancelled") else ():
                found[rule][role][one.key.task].append(broken)

    def family(task: str) -> str:
        return families.get(task, task)

    def rate(rule: str) -> FaultRate:
        shares = {role: {task: sum(hits) / len(hits) for task, hits in found[rule][role].items()} for role in tries}
        before, after = shares["before"], shares["after"]
        change = {task: after[task] - before[task] for task in after if task in before}
        return FaultRate(
            fault=rule,
            shares={role: _by_family(by_task, family, seed) for role, by_task in shares.items()},
            change=_by_family(change, family, seed, signed=True),
        )

    return tuple(rate(rule) for rule in list(found))
