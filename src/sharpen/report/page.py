"""The report: one self-contained HTML page. No script, no network, and every word of it escaped, since trajectories are hostile text."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from sharpen.advisor import purity_line, too_lossy
from sharpen.behaviour import FAULTS, MEASURES
from sharpen.policies.meter import total
from sharpen.records import (
    Audit,
    Behaviour,
    Change,
    Choice,
    Decision,
    DemonstrationQuality,
    Distilled,
    Diversity,
    Evaluation,
    FaultRate,
    Faults,
    Filtered,
    Gain,
    Interval,
    Pairing,
    Purity,
    Record,
    Selection,
    Spent,
    TaskResult,
    TrainingReport,
    Trajectory,
    Transfer,
    Verdict,
    Worked,
)
from sharpen.stats import level_text, pass_range_with_errors


class SampleView(Record, frozen=True, kw_only=True):
    """One trajectory with its verdict, why it was kept or not, and its training row's text in order (True where trained)."""

    trajectory: Trajectory
    verdict: Verdict | None
    why: str
    pieces: tuple[tuple[str, bool], ...] = ()


class RungView(Record, frozen=True, kw_only=True):
    """One rung as the page shows it. ``sampled_tokens`` counts rollouts and evaluation; ``control`` stands beside the rung before it; ``budget`` says what
    became of an adaptive one. ``sampling`` is what making tries to train on cost, which gave ``kept`` trajectories and ``newly_solved`` tasks, that no
    rung before had solved; ``taken`` are tries that a rung before it had made and paid. ``purity`` is by labels on what a rung
    that samples would keep. ``teacher`` is how good a rung's teacher is on dev, ``distilled`` what became of copying it, ``transfer`` and ``faults`` how
    it went about tasks, and failed, beside its teacher or demonstrators, ``filtered`` what leaving known faults out came to, ``diversity`` what it did to how
    many ways there are. ``pairing`` is what it learnt to prefer, where it learnt from fails too."""

    name: str
    method: str
    dev: Evaluation | None
    test: Evaluation | None = None
    panel: Evaluation | None = None
    gain: Gain | None = None
    decision: Decision | None = None
    selection: Selection | None = None
    training: TrainingReport | None = None
    sampled_tokens: int = 0
    trained_tokens: int = 0
    minutes: float = 0.0
    control: bool = False
    shipped: bool = False
    budget: str = ""
    sampling: Spent | None = None
    judging: Spent = Spent()
    taken: int = 0
    kept: int = 0
    hints: Spent | None = None
    hinted: int = 0
    newly_solved: int = 0
    purity: Purity | None = None
    teacher: Evaluation | None = None
    distilled: Distilled | None = None
    transfer: Transfer | None = None
    faults: Faults | None = None
    filtered: Filtered | None = None
    diversity: Diversity | None = None
    pairing: Pairing | None = None
    samples: tuple[SampleView, ...] = ()


class RunView(Record, frozen=True, kw_only=True):
    """A run as the page shows it, rungs in order. ``habits`` are the demonstrators'."""

    name: str
    settings_yaml: str
    rungs: tuple[RungView, ...]
    demonstrations: DemonstrationQuality | None = None
    habits: Behaviour | None = None
    audit: Audit | None = None
    banners: tuple[str, ...] = ()
    hardware: str = ""
    commit: str = ""
    engine: str = ""
    seed: int = 0
    date: str = ""
    seconds_in_engine: float = 0
    seconds_in_training: float = 0
    seconds_total: float = 0
    spent: Spent = Spent()
    judging: Spent = Spent()
    planned: Spent | None = None


@cache
def _page() -> Template:
    """Read once: to compile it takes longer than to fill it in."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "rate": rate,
        "points": points,
        "turns": turns,
        "amount": amount,
        "bits": bits,
        "beside": beside,
        "count": count,
        "minutes": minutes,
        "outcome": outcome,
        "bought": bought,
        "paid": paid,
        "chosen": chosen,
        "says": purity_line,
        "error_range": error_range,
        "copied": copied,
        "takes": takes,
        "facets": facets,
        "became": became,
        "level": level_text,
    }
    return environment.get_template("page.html.j2")


def render(view: RunView) -> str:
    """The page as one string of HTML."""
    known = view.seconds_in_engine + view.seconds_in_training
    times = [
        ("sampling", view.seconds_in_engine),
        ("training", view.seconds_in_training),
        ("everything else", max(0.0, view.seconds_total - known)),
    ]
    return _page().render(
        view=view,
        plot=plot(view.rungs),
        heat=heat_map(view.rungs),
        largest={rung.name: largest(rung) for rung in view.rungs},
        many=many_tries(view.rungs),
        shipped=next((rung for rung in view.rungs if rung.shipped), None),
        has_test=any(rung.test for rung in view.rungs),
        has_panel=any(rung.panel for rung in view.rungs),
        measures=MEASURES,
        classes=FAULTS,
        alike={"like": "like the teacher's", "unlike": "unlike the teacher's", "open": "open: too few tasks to tell"},
        times=[(what, seconds / 60, 100 * seconds / max(view.seconds_total, known)) for what, seconds in times if seconds],
    )


# ---------------------------------------------------------------- numbers as text


def numbers(interval: Interval | None, signed: bool = False) -> tuple[str, str, str]:
    """Value, low and high in percent (or points), one decimal: ``-`` where not measured, ``undefined`` where NaN, never 0 for either."""
    if interval is None:
        return "-", "-", "-"
    value, low, high = (
        "undefined" if math.isnan(x) else f"{100 * x:{'+' if signed else ''}.1f}" for x in (interval.value, interval.low, interval.high)
    )
    return value, low, high


def rate(interval: Interval | None) -> str:
    """``48.1 % [40.2, 56.0], n 60``."""
    return _with_bounds(interval, numbers(interval), " %")


def points(interval: Interval | None) -> str:
    """A gain in points: ``+16.2 [+8.1, +24.0], n 60``."""
    return _with_bounds(interval, numbers(interval, signed=True), "")


def error_range(evaluation: Evaluation) -> str:
    """pass@1 with every error counted as a fail, then as a pass: ``41.0 to 46.2 %``; "" where nothing ended in an error."""
    if not evaluation.errors:
        return ""
    low, high = pass_range_with_errors(evaluation.tasks)
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def turns(interval: Interval) -> str:
    """A mean number of turns: ``0.8 [0.2, 1.5], n 12``."""
    value, low, high = ("undefined" if math.isnan(x) else f"{x:.1f}" for x in (interval.value, interval.low, interval.high))
    return _with_bounds(interval, (value, low, high), "")


def amount(interval: Interval, measure: str, signed: bool = False) -> str:
    """One of ``behaviour.MEASURES``: a count as ``4.3 [3.7, 4.9], n 24``, a share in percent, a difference of shares in points."""
    if MEASURES[measure].kind != "count":
        return points(interval) if signed else rate(interval)
    value, low, high = (
        "undefined" if math.isnan(x) else f"{x:{'+' if signed else ''}.1f}" for x in (interval.value, interval.low, interval.high)
    )
    return _with_bounds(interval, (value, low, high), "")


def bits(interval: Interval) -> str:
    """``0.18 bits [0.13, 0.23], n 24``."""
    value, low, high = ("undefined" if math.isnan(x) else f"{x:.2f}" for x in (interval.value, interval.low, interval.high))
    return _with_bounds(interval, (value, low, high), " bits")


class Facets(NamedTuple):
    """A change as text: before, after and the difference with their intervals, and what is to be said of it, in a tag's class and in words."""

    what: str
    before: str
    after: str
    difference: str
    tag: str
    says: str


def facets(diversity: Diversity) -> list[Facets]:
    """A row for each facet of what a round did to diversity."""
    return [
        Facets(one.words, _facet(one, one.before), _facet(one, one.after), _facet(one, one.printed), *_said(one))
        for one in diversity.changes
    ]


def _facet(change: Change, interval: Interval) -> str:
    if change.why:
        return "undefined"
    signed = interval is change.printed
    if change.unit == "share":
        return points(interval) if signed else rate(interval)
    digits = 2 if change.unit == "solutions" else 3
    value, low, high = (
        "undefined" if math.isnan(x) else f"{x:{'+' if signed else ''}.{digits}f}" for x in (interval.value, interval.low, interval.high)
    )
    return _with_bounds(interval, (value, low, high), "" if change.unit == "solutions" else " nats")


def _said(change: Change) -> tuple[str, str]:
    """By the interval that decides, so that the page says what the decision does."""
    d = change.deciding
    if change.why or math.isnan(d.low):
        return "", change.why or "too few families to tell"
    if too_lossy(change):
        return "worse", "lost"
    return ("", "less, as much as is let pass") if d.high < 0 else ("keep", "more") if d.low > 0 else ("", "not surely changed")


def became(row: FaultRate) -> tuple[str, str]:
    """What became of a fault that was left out of training, in a tag's class and in words."""
    if not any(row.shares[role].value > 0 for role in ("before", "after")):
        return "", "never seen in the student"
    change = row.change
    if math.isnan(change.low):
        return "", "too few families to tell"
    return ("keep", "surely less") if change.high < 0 else ("worse", "surely more") if change.low > 0 else ("", "not surely changed")


def beside(agents: Sequence[Behaviour]) -> list[tuple[str, list[str]]]:
    """The tools or verbs that any of the agents uses, most used first, with each one's share of tries; ``-`` where it is not among its commonest."""
    shares = [{use.name: use.share for use in agent.uses} for agent in agents]
    most = {name: max(side[name].value for side in shares if name in side) for side in shares for name in side}
    absent = ["-" if agent.others or not agent.tasks else "0 %" for agent in agents]
    used = sorted(most, key=lambda name: (-most[name], name))
    return [(name, [rate(side[name]) if name in side else none for side, none in zip(shares, absent, strict=True)]) for name in used]


def _with_bounds(interval: Interval | None, texts: tuple[str, str, str], unit: str) -> str:
    value, low, high = texts
    if interval is None:
        return value
    unit = "" if value == "undefined" else unit
    inside = "undefined" if low == high == "undefined" else f"{low}, {high}"
    return f"{value}{unit} [{inside}], n {interval.n}"


def count(n: int) -> str:
    """``0``, ``950``, ``9,999``, ``12k``, ``4.5M``."""
    if n < 10_000:
        return f"{n:,}"
    return f"{n / 1e3:.0f}k" if n < 999_500 else f"{n / 1e6:.1f}M"


def dollars(amount: float) -> str:
    """``$0.0012``, ``$3.40``: two digits that count, at least to the cent where there is one."""
    return f"${amount:.2f}" if amount >= 0.095 or amount == 0 else f"${amount:.2g}"


def each(spent: Spent, number: int) -> str:
    """What one of ``number`` things that were bought for ``spent`` cost: ``1.2k tokens``, with the money where there is any and it is known."""
    if not number:
        return "-"
    words = [f"{count(round(spent.tokens / number))} tokens"]
    words += [dollars(spent.dollars / number)] if spent.dollars else []
    words += ["price unknown"] if spent.unpriced else []
    words += ["size unknown"] if spent.unsized else []
    return ", ".join(words)


def bought(rung: RungView) -> str:
    """What a rung's sampling cost and brought, in one line; "" where it sampled nothing to train on."""
    if rung.sampling is None:
        return ""
    spent, kept, judging = rung.sampling, rung.kept, rung.judging
    paid = f" for {dollars(spent.dollars)}" if spent.dollars else ""
    unknown = f" ({'; '.join(_unknown(spent))})" if _unknown(spent) else ""
    whole = total(spent, judging)
    brought = [f"{kept} kept, {each(whole, kept)} each" if kept else "nothing kept"]
    if rung.taken:
        brought = [f"{kept} kept of these and of {count(rung.taken)} tries that were made and paid before"]
    brought += [
        f"{rung.newly_solved} tasks newly solved, {each(whole, rung.newly_solved)} each" if rung.newly_solved else "no task newly solved"
    ]
    if rung.hints is not None:
        brought.append(
            f"with the reference shown {count(rung.hints.calls)} calls more, in no rate: {rung.hinted} kept, {each(rung.hints, rung.hinted)} each"
        )
    return (
        f"sampled {count(spent.calls)} calls{unknown}, {count(spent.tokens)} tokens ({count(spent.sampled_tokens)} of them sampled){paid}, "
        f"{minutes(spent.seconds / 60)} min{f', and its verifier {_asked(judging)}' if judging.calls else ''}: {'; '.join(brought)}"
    )


def paid(spent: Spent, judging: Spent, planned: Spent | None) -> str:
    """All that a run asked of policies, what its verifiers asked of that, and what was ``planned``, in one line."""
    words = [f"{count(spent.calls)} calls", f"{count(spent.prompt_tokens)} prompt and {count(spent.sampled_tokens)} sampled tokens"]
    words += [dollars(spent.dollars)] if spent.dollars or (planned is not None and planned.dollars) else []
    words += _unknown(spent)
    said = ", ".join(words)
    said += f"; of these its verifiers asked {_asked(judging)}" if judging.calls else ""
    if planned is not None:
        said += f"; planned before it began: {count(planned.calls)} calls, {count(planned.tokens)} tokens"
        if planned.unpriced:
            said += ", of unknown price"
        elif planned.dollars or spent.dollars:
            said += f", {dollars(planned.dollars)}"
    return said


def _asked(spent: Spent) -> str:
    money = f", {dollars(spent.dollars)}" if spent.dollars else ""
    return f"{count(spent.calls)} calls, {count(spent.tokens)} tokens{money}"


def _unknown(spent: Spent) -> list[str]:
    words = [f"{count(spent.unpriced)} calls of unknown price, which are in no dollar figure"] if spent.unpriced else []
    words += [f"{count(spent.unsized)} calls whose tokens nobody counted, which are in no figure"] if spent.unsized else []
    return words


def takes(worked: Worked) -> tuple[str, str, str, str, str]:
    """What one try takes: turns, prompt tokens, sampled tokens, seconds, dollars; ``-`` where nobody recorded it."""

    def number(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.3g}" if value < 100 else f"{value:,.0f}"

    # No model answers without either: tries from a file that says nothing of them.
    if not worked.prompt_tokens and not worked.sampled_tokens:
        return number(worked.turns), "-", "-", number(worked.seconds), "-"
    price = "unknown" if math.isnan(worked.dollars) else dollars(worked.dollars)
    return number(worked.turns), number(worked.prompt_tokens), number(worked.sampled_tokens), number(worked.seconds), price


def copied(made: Distilled) -> tuple[str, ...]:
    """What the student has of its teacher and what for, in lines."""
    share = "an undefined share" if math.isnan(made.kept.value) else rate(made.kept)
    cost = [] if math.isnan(made.tokens.value) else [f"{rate(made.tokens)} of its tokens"]
    quick = made.after.seconds / made.teacher.seconds if made.teacher.seconds else math.nan
    cost += [] if math.isnan(quick) else [f"{100 * quick:.1f} % of its seconds"]
    cost += (
        [f"{100 * made.after.dollars / made.teacher.dollars:.1f} % of its dollars"]
        if made.teacher.dollars > 0 and made.after.dollars >= 0
        else []
    )
    over = made.over.printed
    above = "above its teacher" if over.low > 0 else "below its teacher" if over.high < 0 else "not told apart from its teacher"
    taught = f"the teacher's tries to learn from took {count(made.teaching.tokens)} tokens in {count(made.teaching.calls)} calls"
    taught += f", {dollars(made.teaching.dollars)}" if made.teaching.dollars else ""
    price = f"for {', '.join(cost)}" if cost else "and nobody recorded what that cost the teacher"
    return (
        f"the student has {share} of its teacher's gain, {price}",
        f"it is {above}: {points(over)} points; it gained {points(made.gained.printed)}, the teacher is {points(made.gap.printed)} over it before",
        taught if made.teaching.calls else "the teacher was asked for no tries to learn from",
    )


def minutes(value: float) -> str:
    return f"{value:.{1 if value < 100 else 0}f}"


def outcome(rung: RungView) -> str:
    """What became of the rung, in a word or two."""
    if rung.control:
        return "control"
    if rung.decision is None:
        return "-"
    words = {"keep": "kept", "worse": "rolled back", "plateau": "plateau, rolled back", "refuse": "refused"}
    return words.get(rung.decision.outcome, rung.decision.outcome)


def chosen(choice: Choice) -> str:
    """How a try was chosen: ``try 3 of 8, chosen by majority vote; 5 votes for '42'; 1 broke; made by small``."""
    one = choice.tries[choice.chosen]
    verdicts = Counter(other.verdict for other in choice.tries if other.verdict is not None)
    said = [f"try {choice.chosen + 1} of {len(choice.tries)}, chosen by {choice.by}"]
    said += [", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())] if verdicts else []
    said += [f"{sum(other.vote == one.vote for other in choice.tries)} votes for {one.vote!r}"] if one.vote is not None else []
    broke = sum(other.stop == "error" for other in choice.tries)
    said += [f"{broke} broke"] if broke else []
    said += [f"{choice.wanted - len(choice.tries)} not made"] if choice.wanted > len(choice.tries) else []
    return "; ".join([*said, f"made by {one.agent}"])


def largest(rung: RungView) -> int:
    """The largest k that was measured on dev (or on test, where dev was not)."""
    measured = rung.dev or rung.test
    return max(measured.pass_at, default=1) if measured else 1


def many_tries(rungs: tuple[RungView, ...]) -> str:
    """``pass@8`` where the rungs share their largest k, ``pass@k`` where they do not."""
    ks = {largest(rung) for rung in rungs} - {1}
    return f"pass@{ks.pop()}" if len(ks) == 1 else "pass@k"


# ---------------------------------------------------------------- geometry


class Mark(NamedTuple):
    """One estimate with its interval. ``x``, ``low``, ``high`` in percent of the plot's width, ``y`` in pixels."""

    kind: str  # pass1, passk, test1, testk
    x: float
    low: float | None
    high: float | None
    y: int
    says: str


class Plot(NamedTuple):
    """The ladder: ``rows`` are (rung, top in pixels, marks), ``steps`` join the pass@1 of the rungs, controls left aside. ``ceilings`` are teachers'."""

    rows: list[tuple[RungView, int, list[Mark]]]
    steps: list[tuple[Mark, Mark]]
    ticks: list[tuple[float, str]]
    height: int
    ceilings: list[Mark] = []


def plot(rungs: tuple[RungView, ...]) -> Plot:
    """Where everything goes: a band for each rung, a line in it for each measured number, and an axis from 0 to a round rate."""
    measured = [(rung, _measured(rung)) for rung in rungs]
    taught = _teachers(rungs)
    reach = [x for _, marks in measured for _, _, i in marks for x in (i.value, i.high) if not math.isnan(x)]
    reach += [x for i in taught.values() for x in (i.value, i.high) if not math.isnan(x)]
    top = min(1.0, math.ceil(10 * max(reach, default=1.0) - 1e-9) / 10) or 0.1

    rows, spine, y = [], [], 0
    for rung, marks in measured:
        placed = [
            Mark(kind, *_across(i, top), y + 28 + 10 * line, f"{what}: {rate(i)}")
            for line, (kind, what, i) in enumerate(marks)
            if not math.isnan(i.value)
        ]
        rows.append((rung, y, placed))
        if not rung.control:
            spine += [mark for mark in placed if mark.kind == "pass1"]
        y += 40 + 10 * len(marks)
    tenths = round(10 * top)
    ticks = [(100 * t / tenths, f"{10 * t} %") for t in range(0, tenths + 1, 1 if tenths <= 4 else 2)]
    lines = [Mark("ceiling", *_across(i, top), 0, f"teacher {name}, pass@1: {rate(i)}") for name, i in taught.items()]
    return Plot(rows, list(itertools.pairwise(spine)), ticks, y, lines)


def _teachers(rungs: tuple[RungView, ...]) -> dict[str, Interval]:
    """The pass rate of every teacher that was measured on its student's dev tasks."""
    found = [rung.transfer for rung in rungs if rung.transfer and rung.transfer.gain.printed.n and rung.transfer.trained is None]
    return {one.teacher.agent: one.teacher.pass_rate for one in found if not math.isnan(one.teacher.pass_rate.value)}


def _measured(rung: RungView) -> list[tuple[str, str, Interval]]:
    """(kind, words, interval) of each number of the rung."""
    found = []
    for split, evaluation in (("dev", rung.dev), ("test", rung.test)):
        ks = sorted({1, max(evaluation.pass_at, default=1)}) if evaluation else []
        for k in ks:
            if evaluation and (interval := evaluation.pass_at.get(k)):
                kind = {"dev": "pass", "test": "test"}[split] + ("1" if k == 1 else "k")
                found.append((kind, f"pass@{k} on {split}", interval))
    return found


def _across(interval: Interval, top: float) -> tuple[float, float | None, float | None]:
    x, low, high = (None if math.isnan(v) else round(100 * min(v, top) / top, 2) for v in (interval.value, interval.low, interval.high))
    return x or 0.0, low, high


class Cell(NamedTuple):
    """Pass rate in percent, None where the task was not tried, and the counts as text."""

    percent: int | None
    says: str


def heat_map(rungs: tuple[RungView, ...]) -> list[tuple[TaskResult, list[Cell]]]:
    """Tasks of dev, most solved first, with one cell for each rung that was measured on dev. Errored samples are not tries."""
    columns = [{r.task: r for r in rung.dev.tasks} for rung in rungs if rung.dev]
    tasks = {task: result for column in reversed(columns) for task, result in column.items()}
    rows = [(result, [_cell(column.get(task)) for column in columns]) for task, result in tasks.items()]
    return sorted(rows, key=lambda row: (-sum(cell.percent or 0 for cell in row[1]), row[0].task))


def _cell(result: TaskResult | None) -> Cell:
    if result is None or result.samples == result.errors:
        return Cell(None, "-" if result is None else "error")
    tries = result.samples - result.errors
    return Cell(round(100 * result.passes / tries), f"{result.passes}/{tries}")
