"""Measurements -> Decision, or the whole Advice. Pure: knows nothing of models or files, only numbers.

``choose`` holds what was measured against ``RULES``, a table in order that docs/advisor.md is written from: for each action the first rule that
fires decides. The ladder asks one thing at a time: ``advise``, ``after_sampling``, ``gate``, ``judge_gain``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from msgspec import Meta, structs

from sharpen.errors import SettingsError, nearest
from sharpen.records import (
    Action,
    Advice,
    Change,
    Decision,
    Diversity,
    Gain,
    Interval,
    Measurements,
    Option,
    Purity,
    Reason,
    Record,
    Teaching,
    Tried,
)
from sharpen.stats import clopper_pearson, decide, level_text

Method = Literal["few-shot", "sft", "rejection-sampling", "expert-iteration", "distillation"]
Variant = Literal["hints", "more-samples", "temperature", "negatives", "continue"]
METHODS: tuple[Method, ...] = ("few-shot", "sft", "rejection-sampling", "expert-iteration", "distillation")


def tried(method: str, decision: Decision) -> Tried | None:
    """What became of a rung, as ``Measurements.tried`` counts it. None for a base, a control, and a refusal that only somebody's word lifts.

    Such a refusal says nothing of the next try: what it waits for is measured anew.
    """
    outcome = decision.outcome
    if outcome == "baseline" or outcome == "proceed" or decision.awaits:
        return None
    why = decision.reasons[0] if outcome == "refuse" and decision.reasons else ""
    return Tried(method=method, outcome=outcome, gain=decision.gain, variant=decision.variant, why=why)


def reason_line(why: Reason) -> str:
    """A reason in a line, with what was measured and what it was held against."""
    at = f" {_ci(why.interval)}" if why.interval is not None else ""
    setting = f", {why.setting}" if why.setting else ""
    return f"{why.says} ({why.measured}{at}; asked for: {why.threshold}{setting})"


def advise(method: Method, seen: Measurements) -> Decision:
    """Whether ``method`` may be tried on what has been measured. ``refuse`` carries what would lift the refusal."""
    obstacle = {"few-shot": _without_demonstrations, "sft": _without_demonstrations}.get(method, _without_signal)(seen)
    if obstacle is not None:
        return Decision(outcome="refuse", action=f"leave out {method}", reasons=(obstacle,))
    return Decision(outcome="proceed", action=f"try {method}", reasons=(_ground(method, seen),))


def after_sampling(method: Method, seen: Measurements, *, hinted: bool = False) -> Decision:
    """Whether survivors are worth training on, once the tries have been made and judged. ``hinted``: solutions were shown too, and nothing came of it."""
    if seen.tasks_sampled is None or seen.samples_per_task is None or seen.tasks_solved is None:
        return Decision(outcome="refuse", action=f"leave out {method}", reasons=("no try could be judged: there is nothing to keep",))
    tries = f"{seen.samples_per_task} tries on each of {seen.tasks_sampled} tasks"
    if seen.tasks_solved + seen.solved_later == 0:
        none = f"{tries} hold no success"
        if method == "distillation":
            lift = "raise distillation.n, or name a stronger teacher"
        elif hinted:
            none += ", nor did showing the solution bring a try that may train"
            lift = "teach by demonstrations or a teacher first, choose easier tasks, or see by sharpen show --failed whether the verifier fails what is right"
        else:
            lift = "teach by demonstrations or a teacher first, give hints, choose easier tasks, or raise sampling.n"
        reason = f"{none}: there is nothing to keep; {lift}"
        return Decision(outcome="refuse", action=f"leave out {method}", reasons=(reason,))
    reason = f"{tries}: {seen.tasks_solved} solved at least once, {seen.tasks_mixed} of them not always"
    if seen.solved_later:
        reason += f"; later waves solved {seen.solved_later} more"
    return Decision(outcome="proceed", action=f"train on the survivors of {method}", reasons=(reason,))


def worth_copying(seen: Measurements) -> Decision:
    """Whether the teacher has anything that the student lacks: it is better by the paired test, or solves a task that the student never did.

    Neither: no behaviour, nothing to copy.
    """
    assert seen.teaching is not None
    teaching, line = seen.teaching, teaching_line(seen.teaching)
    if teaching.gap.deciding.low > 0 or teaching.solves:
        return Decision(outcome="proceed", action=f"copy {teaching.teacher}", reasons=(line,), gain=teaching.gap)
    if not teaching.tries:
        reason = (
            f"the teacher {teaching.teacher} has no try at a dev task, so nothing says that it has something to copy; "
            "record some, or give what there is as demonstrations"
        )
        return Decision(outcome="refuse", action="leave out distillation", reasons=(reason,))
    lift = "name a stronger teacher, or one that chooses among more tries"
    if teaching.silent == teaching.tries:
        lift = f"all {teaching.tries} of its tries are empty: mend its prompt, template or max_tokens, or name another"
    reason = f"{line}; no behaviour, nothing to copy: {lift}"
    return Decision(outcome="refuse", action="leave out distillation", reasons=(reason,), gain=teaching.gap)


def teaching_line(teaching: Teaching) -> str:
    """Teacher and student in a line, with numbers."""
    d = teaching.gap.deciding
    test = "better" if d.low > 0 else "worse" if d.high < 0 else "not shown to be better"
    silent = f", {teaching.silent} of its {teaching.tries} tries empty" if teaching.silent else ""
    return (
        f"the teacher {teaching.teacher} passes {_rate(teaching.teacher_rate)}{silent}, the student {_rate(teaching.student_rate)}: paired gain "
        f"{_decided(d)}, {test}; of the {teaching.lacks} tasks that the student passed "
        f"in none of {teaching.student_tries} tries the teacher solves {teaching.solves}"
    )


def gate(method: Method, seen: Measurements, ask: str, trust: str = "--trust-unaudited-verifier") -> Decision:
    """Whether what was selected may train (honesty rule 4): the verifier is exact, or labels show that what it keeps is pure.

    Neither: refused, with what is missing and ``ask``, the command that asks for it; unless the user trusts the verifier unaudited, as by ``trust``, and then
    the decision carries the banner. Labels that show it to be impure are an audit, and no trust goes past them. What it declares of itself (``risks``) is a
    reason and a banner of whatever trains.
    """
    purity, go = seen.purity, f"train on the survivors of {method}"
    if seen.verifier_exact:  # a claim that a gameable verifier cannot keep, and that nobody audits
        return Decision(outcome="proceed", action=go, reasons=(f"the verifier {seen.verifier} is exact", *seen.risks), banners=seen.risks)
    assert purity is not None
    if seen.cheat and not seen.trusted_unaudited:
        reason = f"the verifier {seen.verifier} passes a cheat ({seen.cheat}); mend it, claim that it is exact, or go on with {trust}"
        return Decision(outcome="refuse", action=f"leave out {method}", reasons=(reason,))
    if purity.outcome == "clears" and not seen.cheat:
        return Decision(outcome="proceed", action=go, reasons=(purity_line(purity), *seen.risks), banners=seen.risks)
    if purity.outcome == "below":
        reason = f"the verifier {seen.verifier} keeps too much that is not good: {purity_line(purity)}; mend it, or lower ladder.purity"
    elif seen.trusted_unaudited:
        banner = f"the verifier {seen.verifier} passes a cheat: {seen.cheat.partition(':')[0]}" if seen.cheat else unaudited(seen.verifier)
        return Decision(outcome="proceed", action=go, reasons=(purity_line(purity), *seen.risks), banners=(banner, *seen.risks))
    else:
        reason = (
            f"the verifier {seen.verifier} is neither exact nor audited: {purity_line(purity)}; {ask} asks for them, and then this command goes on; "
            f"{trust} goes on without"
        )
    return Decision(outcome="refuse", action=f"leave out {method}", reasons=(reason,))


def unaudited(verifier: str | None) -> str:
    """The banner on everything that is made of what an unaudited verifier kept."""
    return f"nobody audited the verifier {verifier}: how much of what it kept is truly good is not known"


def _decided(d: Interval, form: str = "+.1%", unit: str = "") -> str:
    """``+3.1% [+1.0%, +5.2%] at 98.75% over 40 families``."""
    return f"{d.value:{form}}{unit} [{d.low:{form}}, {d.high:{form}}] at {level_text(d.level)}% over {d.n} families"


def purity_line(purity: Purity) -> str:
    """Purity in a line: the estimate with its bound and n, or what is missing."""
    labelled = purity.good + purity.bad + purity.unsure
    unsure = f", {purity.unsure} unsure and not counted as good" if purity.unsure else ""
    seen = f"{purity.good} of {labelled} labelled rows are good{unsure}" if labelled else "no row is labelled"
    if labelled:
        value = "undefined" if math.isnan(purity.share.value) else f"{purity.share.value:.1%}"
        seen += f": purity {value}, lower bound {purity.share.low:.1%} ({level_text(purity.share.level)}%, one-sided, at any look)"
    match purity.outcome:
        case "clears":
            return f"{seen}, over the bar of {purity.bar:.0%}; no more labels are needed"
        case "below":
            return f"{seen}: surely under the bar of {purity.bar:.0%}, and more labels would not help"
    return f"{seen}; {purity.missing} more of these {purity.rows} rows, all good, would clear the bar of {purity.bar:.0%}"


def judge_gain(gain: Gain, delta: float) -> Decision:
    """Keep, roll back, or say that it is undecided: three outcomes for every gain (honesty rule 3). ``delta`` is the smallest effect of interest."""
    outcome = decide(gain, delta)
    d = gain.deciding
    numbers = f"paired gain {_decided(d)}"
    reason = {
        "keep": f"{numbers}: better",
        "worse": f"{numbers}: worse",
        "plateau": f"{numbers}: whatever is gained is under the smallest effect of interest, {delta:.1%}",
        "undecided": f"{numbers}: neither shown better nor shown to be under {delta:.1%}; the smallest gain this design would see is "
        f"{_percent(gain.smallest_visible)}; more dev families or evaluation.max_n would tell",
    }[outcome]
    action = {"keep": "keep it", "worse": "roll it back", "plateau": "roll it back", "undecided": "roll it back, as not proved"}[outcome]
    return Decision(outcome=outcome, action=action, reasons=(reason,), gain=gain)


def judge_forgetting(decision: Decision, aside: Gain, drop: float) -> Decision:
    """``decision``, or ``worse`` where the off-task panel surely fell by more than ``drop`` since the bare model (``aside`` is that difference)."""
    d = aside.deciding
    line = f"off-task panel {_decided(d)} since {aside.base.removeprefix('rungs/')}"
    if d.high < -drop:
        reasons = (*decision.reasons, f"{line}: it has forgotten what it could do")
        return Decision(outcome="worse", action="roll it back: it forgets", reasons=reasons, gain=decision.gain)
    return Decision(outcome=decision.outcome, action=decision.action, reasons=(*decision.reasons, line), gain=decision.gain)


def judge_collapse(decision: Decision, seen: Diversity, refuse: bool) -> Decision:
    """``decision`` with what the round surely loses beside pass@1; ``worse`` where it was to be kept and such a bargain is to be refused.

    The off-task panel has been judged already (``judge_forgetting``).
    """
    lost = [loss_line(change) for change in seen.changes if too_lossy(change) and change.facet != "off-task"]
    if not lost:
        return decision
    kept, gain = decision.outcome == "keep", decision.gain
    line = (
        f"buys pass@1 {gain.deciding.value:+.1%} with {' and '.join(lost)}" if kept and gain is not None else f"loses {' and '.join(lost)}"
    )
    reasons = (*decision.reasons, line)
    if kept and refuse:
        return Decision(outcome="worse", action="roll it back: it collapses", reasons=reasons, gain=gain)
    return Decision(outcome=decision.outcome, action=decision.action, reasons=reasons, gain=gain)


def too_lossy(change: Change) -> bool:
    """Whether more than is let pass is surely lost. Never of what is undefined."""
    return change.spare.high < 0


def loss_line(change: Change) -> str:
    """``pass@16 -12.0% [-18.1%, -6.2%] at 98.8% over 40 families``."""
    form, unit = {"share": ("+.1%", ""), "solutions": ("+.2f", ""), "nats": ("+.3f", " nats")}[change.unit]
    d = change.deciding
    return f"{change.words} {_decided(d, form, unit)}"


def _rate(interval: Interval) -> str:
    return "at an undefined rate" if math.isnan(interval.value) else f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _percent(share: float) -> str:
    return "undefined, since too few families differ" if math.isnan(share) else f"{share:.1%}"


def _without_demonstrations(seen: Measurements) -> str | None:
    if seen.demonstrations == 0:
        return "there are no demonstrations; give the demo split tasks whose solutions are known"
    if seen.demonstrations_passing == 0:
        return f"none of the {seen.demonstrations} demonstrations passes the verifier; fix the demonstrations or the verifier"
    return None


def _without_signal(seen: Measurements) -> str | None:
    if seen.verifier is None:
        return "there is no verifier: without filtering this is SFT on average behaviour; give the tasks a verifier"
    if seen.gold_passes is False:
        return f"the verifier {seen.verifier} fails gold solutions; fix it, or the solutions"
    if seen.noop_fails is False:
        return f"the verifier {seen.verifier} passes empty or off-task answers; what it keeps is not success; fix it"
    return None


def _ground(method: Method, seen: Measurements) -> str:
    if method in ("few-shot", "sft"):
        return f"{seen.demonstrations_passing} of {seen.demonstrations} demonstrations pass"
    checks = "its gold and no-op checks hold" if seen.gold_passes and seen.noop_fails else "it has no gold solutions to check it with"
    return f"the verifier {seen.verifier} {'is exact, and ' if seen.verifier_exact else 'is in place, and '}{checks}"


# ---------------------------------------------------------------- the choice


class Forecast(Record, frozen=True, kw_only=True):
    """What a method makes of its headroom h: ``share`` times h, and 95 % of the time between ``low`` and ``high`` times (|h| + ``FLOOR``) from there."""

    share: float
    low: float
    high: float


FLOOR = 0.05


class AdvisorSettings(Record, frozen=True, kw_only=True):
    """What the advisor holds measurements against. Where each threshold comes from stands in its description; docs/advisor.md shows them all."""

    budget: Annotated[
        float,
        Meta(gt=0, le=1, description="share of the run's expected tokens that sharpen advise may spend; ours, so that asking stays cheap"),
    ] = 0.02
    patience: Annotated[
        int,
        Meta(
            ge=1,
            description="rounds one after the other, each surely gaining less than ladder.delta, before it is called a plateau; ours, and "
            "benchmarks/advisor.py counts the plateaus that are called too early",
        ),
    ] = 2
    few_mixed: Annotated[
        int,
        Meta(
            ge=1,
            description="fewest tasks with both passes and fails for RL to learn from: a group whose rewards are all equal has no advantage "
            "(GRPO, 2402.03300); the number is ours",
        ),
    ] = 8
    headroom: Annotated[
        float,
        Meta(
            gt=0,
            lt=1,
            description="smallest pass@n over pass@1 that is worth RL, which mostly makes likely what pass@k holds already (2504.13837); "
            "the number is ours",
        ),
    ] = 0.1
    hints: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="share of tasks never solved, and with a solution to show, from which on hints are tried (STaR's rationalization, "
            "2203.14465); the number is ours",
        ),
    ] = 0.3
    unsolved: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="where no task was solved, the 95 % upper bound of the share of tasks that as many tries solve, under which a round is refused for "
            "want of a success; over it more tasks are to be sampled (Clopper-Pearson: 36 tasks without a success bring it under 0.1); the number is ours",
        ),
    ] = 0.1
    forecasts: Annotated[
        dict[str, Forecast],
        Meta(description="others than those fitted on benchmarks/worlds.py (tuning seeds, benchmarks/advisor.py --fit), by method"),
    ] = {}

    def __post_init__(self) -> None:
        for name, one in self.forecasts.items():
            if name not in FITTED:
                raise SettingsError(f"forecasts holds {name!r}{nearest(name, FITTED)}")
            if one.low > one.high:
                raise SettingsError(f"forecasts.{name}: low is {one.low}, over high, {one.high}")


FITTED: dict[str, Forecast] = {
    "sft": Forecast(share=0.2, low=-0.35, high=0.81),
    "rejection-sampling": Forecast(share=0.08, low=-0.33, high=0.64),
    "expert-iteration": Forecast(share=0.44, low=-0.42, high=0.51),
    "retry": Forecast(share=0.02, low=-0.32, high=0.36),
    "distillation": Forecast(share=0.38, low=-1.0, high=1.52),
}
ROUNDS = ("rejection-sampling", "expert-iteration")
SUPERVISED: tuple[Action, ...] = ("few-shot", "sft", "expert-iteration", "rejection-sampling", "distillation", "retry")


@dataclass(frozen=True)
class Case:
    """What a rule may look at: the measurements, the thresholds, and what was said so far of the actions before it."""

    seen: Measurements
    settings: AdvisorSettings
    delta: float
    said: tuple[Option, ...] = ()


Standing = Literal["advised", "open", "done", "refused"]


@dataclass(frozen=True)
class Rule:
    """``action`` stands so ``when`` that holds; ``test`` gives the reason where it does. ``essay``: its sentence there, ``changes``: what would change it."""

    action: Action
    standing: Standing
    when: str
    test: Callable[[Case], Reason | None]
    changes: str = ""
    essay: str = ""


def choose(seen: Measurements, settings: AdvisorSettings | None = None, delta: float = 0.03) -> Advice:
    """The best next step by what was measured, the next best, and what is said of every other one. ``delta`` is the smallest gain of interest.

    What is advised comes first: what stands where the goal is met; then the method that is expected to gain most for what it costs (most, where a cost is
    not known; in the order of ``SUPERVISED`` where a gain is not); then what would open a way that is shut only for want of a label, a measurement or a
    permission; then RL or a curriculum; then what stands, since nothing is left to try.
    """
    case = Case(seen, settings or AdvisorSettings(), delta)
    for action in dict.fromkeys(rule.action for rule in RULES):
        case = replace(case, said=(*case.said, _weighed(action, case)))
    ranked = _ranked(case)
    return Advice(recommendation=ranked[0], runner_up=ranked[1] if len(ranked) > 1 else None, options=case.said, notes=tuple(_notes(case)))


def ended(seen: Measurements, settings: AdvisorSettings, delta: float) -> Literal["plateau", "undecided", ""]:
    """Whether self-training has ended: ``plateau`` where each of the last ``patience`` rounds surely gained less than ``delta``, ``undecided`` where so many
    were not kept but one of them might have. ``""`` where none was made, or the last was kept, or others are left to try."""
    last = _since_kept(seen)
    if len(last) < settings.patience:
        return ""
    sure = [one.outcome in ("plateau", "worse") and one.gain is not None and one.gain.deciding.high < delta for one in last]
    return "plateau" if all(sure[-settings.patience :]) else "undecided"


def ending(seen: Measurements, settings: AdvisorSettings, delta: float) -> str:
    """``ended`` in a line."""
    match ended(seen, settings, delta):
        case "plateau":
            return f"a plateau: each of the last {settings.patience} rounds surely gained less than {delta:.1%}"
        case "undecided":
            maybe = f"{len(_since_kept(seen))} rounds were rolled back, and one of them may have gained {delta:.1%}"
            return f"self-training ends undecided: {maybe}; more dev families tell"
    return ""


def variants(seen: Measurements, settings: AdvisorSettings) -> tuple[tuple[Variant, Reason], ...]:
    """The pawl: in what other ways the round that was rolled back may be tried, the most promising first; those tried since the last keep left out."""
    if seen.samples_per_task is None or not seen.tasks_sampled:
        return ()
    solved, mixed = (seen.tasks_solved or 0) + seen.solved_later, seen.tasks_mixed or 0
    unsolved = seen.tasks_sampled - solved
    shown = unsolved if seen.hintable is None else min(seen.hintable, unsolved)
    never = clopper_pearson(shown, seen.tasks_sampled)
    tries = f"{seen.samples_per_task} tries of {seen.tasks_sampled} tasks"
    with_solution = f", {shown} of them with a solution to show" if seen.hintable is not None else ""
    above = headroom("rejection-sampling", seen)
    apart = f"pass@n is {_points(above)} over pass@1, {tries}"
    bar = _points(settings.headroom)
    found: tuple[tuple[Variant, Reason | None], ...] = (
        ("hints", _when(
            never.value >= settings.hints, "many tasks are never solved: sample with the reference shown, verify, strip the hint",
            f"{unsolved} never solved in {tries}{with_solution}", f"at least {settings.hints:.0%}", never, "advice.hints")),
        ("more-samples", _when(
            mixed > 0 and above >= settings.headroom, "successes are there but rare: more samples on the mixed tasks (sampling.budget: adaptive)",
            apart, f"at least {bar}", seen.pass_n, "advice.headroom")),
        ("temperature", _when(
            mixed > 0 and above < settings.headroom, "tries are alike: another temperature", apart, f"under {bar}", seen.pass_n, "advice.headroom")),
        ("negatives", _when(
            mixed >= settings.few_mixed, "tasks hold passes and fails: learn from both (DPO with its NLL term)", f"{mixed} mixed tasks in {tries}",
            f"at least {settings.few_mixed}", clopper_pearson(mixed, seen.tasks_sampled), "advice.few_mixed")),
        ("continue", _when(
            solved > 0, "go on from what stands in the place of the base (training.start: current)", f"{solved} tasks solved in {tries}",
            "at least 1", clopper_pearson(solved, seen.tasks_sampled))),
    )  # fmt: skip
    kept = max((at for at, one in enumerate(seen.tried) if one.outcome == "keep"), default=-1)
    tried = {one.variant for one in seen.tried[kept + 1 :]}
    return tuple((name, reason) for name, reason in found if reason is not None and name not in tried)


def _weighed(action: Action, case: Case) -> Option:
    for rule in RULES:
        if rule.action == action and (reason := rule.test(case)) is not None:
            how = tuple(f"{name}: {why.says}" for name, why in variants(case.seen, case.settings)) if action == "retry" else ()
            gain = forecast(action, case.seen, case.settings) if rule.standing in ("advised", "open") else None
            cost = case.seen.costs.get("expert-iteration" if action == "retry" else action)
            return Option(action=action, standing=rule.standing, reason=reason, gain=gain, cost=cost, changes=rule.changes, how=how)
    raise AssertionError(f"no rule says anything of {action}")


def _ranked(case: Case) -> list[Option]:
    by = {option.action: option for option in case.said}
    advised = [by[action] for action in SUPERVISED if by[action].standing == "advised"]
    gains = [option.gain.value for option in advised if option.gain is not None]
    costs = [option.cost for option in advised if option.cost]
    if len(gains) == len(advised):
        worth = [gain / cost for gain, cost in zip(gains, costs, strict=True)] if len(costs) == len(advised) else gains
        advised = [option for _, option in sorted(zip(worth, advised, strict=True), key=lambda pair: -pair[0])]
    unlocking = [by[action] for action in ("label", "measure") if by[action].standing == "advised"]
    unlocking += [by[action] for action in SUPERVISED if by[action].standing == "open"]
    last = [by[action] for action in ("rl", "curriculum") if by[action].standing == "advised"]
    asked = [by["rl"]] if by["rl"].standing == "open" else []
    ship = [by["ship"]]
    return [*ship, *advised, *last, *unlocking] if by["ship"].standing == "advised" else [*advised, *unlocking, *last, *ship, *asked]


def forecast(action: Action, seen: Measurements, settings: AdvisorSettings) -> Interval | None:
    """What ``action`` would probably add to pass@1, with a 95 % interval for the true gain of that one try. None where nothing tells.

    Its middle is a share of the headroom: how far demonstrations, pass@n or the teacher are over pass@1, or the gain of the last round kept. Shares and
    widths are fitted on simulated worlds, so the 95 % holds there (benchmarks/advisor.py); on real tasks it is a starting point.
    """
    if action == "few-shot":
        return seen.few_shot.printed if seen.few_shot is not None else None
    fitted = FITTED | settings.forecasts
    if action not in fitted or seen.rate is None or math.isnan(h := headroom(action, seen)):
        return None
    one, scale = fitted[action], abs(h) + FLOOR
    value, least, most = one.share * h, 0.0 - seen.rate.value, 1 - seen.rate.value
    low, high = (min(max(value + end * scale, least), most) for end in (one.low, one.high))
    return Interval(value=min(max(value, low), high), low=low, high=high, n=seen.rate.n, method="fitted on simulated worlds")


def headroom(action: Action, seen: Measurements) -> float:
    """NaN where it is not known."""
    rate = seen.rate.value if seen.rate is not None else math.nan
    if action == "sft":
        return seen.demonstration_rate.value - rate if seen.demonstration_rate is not None else math.nan
    if action == "distillation":
        return seen.teacher.gain.printed.value if seen.teacher is not None and seen.teacher.gain is not None else math.nan
    if action == "expert-iteration":
        return next((one.gain.printed.value for one in reversed(_rounds(seen)) if one.outcome == "keep" and one.gain is not None), math.nan)
    return seen.pass_n.value - rate if seen.pass_n is not None else math.nan


def _rounds(seen: Measurements, *, refused: bool = False) -> list[Tried]:
    """The rounds of self-training, or those that were ``refused`` too, since another method changed what stands: from another prior it is worth trying anew."""
    other = max((at for at, one in enumerate(seen.tried) if one.outcome == "keep" and one.method not in ROUNDS), default=-1)
    return [one for one in seen.tried[other + 1 :] if one.method in ROUNDS and (refused or one.outcome != "refuse")]


def _since_kept(seen: Measurements) -> list[Tried]:
    """The rounds of self-training since anything was kept: all of them were rolled back."""
    rounds = _rounds(seen)
    kept = max((at for at, one in enumerate(rounds) if one.outcome == "keep"), default=-1)
    return rounds[kept + 1 :]


def _points(share: float) -> str:
    return "not known" if math.isnan(share) else f"{100 * share:+.1f} points"


def _notes(case: Case) -> Iterator[str]:
    seen = case.seen
    if seen.trusted_unaudited and not seen.verifier_exact:
        yield unaudited(seen.verifier)
    if seen.tasks_sampled and seen.tasks_solved is not None and (never := seen.tasks_sampled - seen.tasks_solved - seen.solved_later):
        yield f"{never} of {seen.tasks_sampled} tasks were never solved in {seen.samples_per_task} tries: survivors teach nothing there, whatever is chosen"
    if (
        seen.pass_n is not None
        and seen.rate is not None
        and seen.pass_n.value - seen.rate.value >= case.settings.headroom
        and seen.verifier is not None
    ):
        yield (
            f"where what is deployed may try {seen.samples_per_task} times with this verifier, best-of-{seen.samples_per_task} reaches "
            f"{seen.pass_n.value:.1%} [{seen.pass_n.low:.1%}, {seen.pass_n.high:.1%}] without any training"
        )
    if seen.goal is not None and seen.pass_n is not None and seen.pass_n.high < seen.goal.value and seen.teacher is None:
        yield (
            f"the goal, {seen.goal.metric} of {seen.goal.value:.0%}, is over all that the model reaches in {seen.samples_per_task} tries: "
            "its own tries alone will hardly get there"
        )


# ---------------------------------------------------------------- the rules


def _when(holds: bool, says: str, measured: str, threshold: str, interval: Interval | None = None, setting: str = "") -> Reason | None:
    return Reason(says=says, measured=measured, threshold=threshold, interval=interval, setting=setting) if holds else None


def _over_budget(action: str) -> Callable[[Case], Reason | None]:
    def test(case: Case) -> Reason | None:
        cost, left = case.seen.costs.get(action), case.seen.left
        if cost is None or left is None:
            return None
        return _when(
            cost > left,
            "what is left to spend does not pay for it",
            f"about {cost:,.0f} tokens",
            f"{left:,.0f} tokens",
            setting="spending.max_tokens",
        )

    return test


def _always(says: str, measured: str, threshold: str = "none") -> Callable[[Case], Reason | None]:
    return lambda case: Reason(says=says, measured=measured, threshold=threshold)


def _goal_met(case: Case) -> Reason | None:
    goal, at = case.seen.goal, case.seen.goal_rate
    if goal is None or at is None or _no_trust(case) is not None:
        return None
    return _when(at.low >= goal.value, "the goal is surely met", f"{goal.metric} of what stands", f"at least {goal.value:.0%}", at, "goal")


def _nothing_left(case: Case) -> Reason | None:
    at = case.seen.rate
    if at is None or _no_trust(case) is not None:
        return None
    says, over = "less is left than the smallest gain of interest", 1 - case.delta
    return _when(at.low > over, says, "pass@1 of what stands", f"over {over:.0%}", at, "ladder.delta")


def _no_demonstrations(case: Case) -> Reason | None:
    seen = case.seen
    lacking = _without_demonstrations(seen)
    return _when(
        lacking is not None, lacking or "", f"{seen.demonstrations_passing or 0} of {seen.demonstrations} demonstrations pass", "at least 1"
    )


def _demonstrations_worse(case: Case) -> Reason | None:
    ours, theirs = case.seen.rate, case.seen.demonstration_rate
    if ours is None or theirs is None or _no_trust(case) is not None:
        return None
    measured = f"demonstrations pass {_ci(theirs)}, the model {_ci(ours)}"
    return _when(
        theirs.high <= ours.low, "imitation's ceiling is under what the model does already", measured, "over pass@1 of the model", theirs
    )


def _tried(method: str) -> Callable[[Case], Reason | None]:
    def test(case: Case) -> Reason | None:
        last = next((one for one in reversed(case.seen.tried) if one.method == method and one.outcome != "refuse"), None)
        if last is None:
            return None
        at = last.gain.printed if last.gain is not None else None
        return Reason(says="it was tried", measured=f"the rung ended: {last.outcome}", threshold="once", interval=at)

    return test


def _sampled_already(case: Case) -> Reason | None:
    first = next(iter(_rounds(case.seen)), None)
    at = first.gain.printed if first is not None and first.gain is not None else None
    return (
        None if first is None else Reason(says="it was tried", measured=f"the round ended: {first.outcome}", threshold="once", interval=at)
    )


def _refused_before(method: str) -> Callable[[Case], Reason | None]:
    def test(case: Case) -> Reason | None:
        rungs = case.seen.tried
        kept = max((at for at, one in enumerate(rungs) if one.outcome == "keep"), default=-1)
        mine = [one for one in rungs[kept + 1 :] if one.method == method and one.outcome == "refuse" and not one.variant]
        return (
            Reason(says="it was refused from what stands", measured=mine[-1].why or "it is not known why", threshold="a try")
            if mine
            else None
        )

    return test


def _few_shot_adds_nothing(case: Case) -> Reason | None:
    at = case.seen.few_shot
    return (
        None
        if at is None
        else _when(
            at.printed.high < case.delta,
            "examples before the task surely add too little",
            "gain of few-shot over the bare prompt",
            f"under {_points(case.delta)}",
            at.printed,
            "ladder.delta",
        )
    )


def _few_shot_adds(case: Case) -> Reason | None:
    at = case.seen.few_shot
    return (
        None
        if at is None
        else _when(
            at.printed.low > 0,
            "prompt it before you train it: examples surely help",
            "gain of few-shot over the bare prompt",
            "over 0",
            at.printed,
        )
    )


def _demonstrations_pass(case: Case) -> Reason | None:
    seen = case.seen
    measured = (
        f"{seen.demonstrations_passing} of {seen.demonstrations} demonstrations pass"
        if seen.demonstrations_passing is not None
        else f"{seen.demonstrations} demonstrations, not judged"
    )
    return _when(
        bool(seen.demonstrations),
        "good trajectories are there: the fastest path, and their quality is its ceiling",
        measured,
        "at least 1",
        seen.demonstration_rate,
    )


def _no_trust(case: Case) -> Reason | None:
    lacking = _without_signal(case.seen)
    return _when(lacking is not None, lacking or "", "the verifier's checks", "it is there, passes gold and fails no-ops")


def _cheated(case: Case) -> Reason | None:
    seen = case.seen
    return _when(
        bool(seen.cheat) and not seen.verifier_exact,
        f"the verifier {seen.verifier} passes a cheat; mend it, or claim that it is exact",
        seen.cheat,
        "none passes",
    )


def _cheated_untrusted(case: Case) -> Reason | None:
    return None if case.seen.trusted_unaudited else _cheated(case)


def _impure(case: Case) -> Reason | None:
    purity = case.seen.purity
    if purity is None or case.seen.verifier_exact or purity.outcome != "below":
        return None
    return Reason(
        says="too much of what the verifier keeps is not good",
        measured="purity, by labels",
        threshold=f"at least {purity.bar:.0%}",
        interval=purity.share,
        setting="ladder.purity",
    )


def _unaudited(case: Case) -> Reason | None:
    seen = case.seen
    if (
        seen.verifier is None
        or seen.verifier_exact
        or seen.trusted_unaudited
        or (seen.purity is not None and seen.purity.outcome == "clears")
    ):
        return None
    guess = (
        ""
        if seen.purity_forecast is None or math.isnan(seen.purity_forecast)
        else f"; {seen.purity_forecast:.0%} is forecast from the audit's error rates"
    )
    bar = f"at least {seen.purity.bar:.0%}" if seen.purity is not None else "ladder.purity"
    measured = purity_line(seen.purity) if seen.purity is not None else "no row is labelled"
    return Reason(
        says="the verifier is neither exact nor audited",
        measured=measured + guess,
        threshold=bar,
        interval=seen.purity.share if seen.purity is not None else None,
        setting="ladder.purity",
    )


def _label(case: Case) -> Reason | None:
    barred = any(test(case) is not None for test in (_no_trust, _cheated_untrusted, _impure))
    return None if barred or _none_solved(case.seen) else _unaudited(case)


def _none_solved(seen: Measurements) -> bool:
    return bool(seen.tasks_sampled) and seen.tasks_solved is not None and seen.tasks_solved + seen.solved_later == 0


def _no_success(case: Case) -> Reason | None:
    if not _none_solved(case.seen):
        return None
    at, most = clopper_pearson(0, case.seen.tasks_sampled or 0), case.settings.unsolved
    says, measured = "no try succeeds: there is nothing to keep", _none_of(case.seen)
    return _when(at.high < most, says, measured, f"at least 1, or not surely under {most:.0%}", at, "advice.unsolved")


def _few_sampled(case: Case) -> Reason | None:
    if not _none_solved(case.seen):
        return None
    at, most = clopper_pearson(0, case.seen.tasks_sampled or 0), case.settings.unsolved
    says, measured = "no try succeeds, but too few tasks were sampled to tell: sample more", _none_of(case.seen)
    return Reason(says=says, measured=measured, threshold=f"at least 1, or surely under {most:.0%}", interval=at, setting="advice.unsolved")


def _none_of(seen: Measurements) -> str:
    return f"0 of {seen.tasks_sampled} tasks solved in {seen.samples_per_task} tries"


def _none_mixed(case: Case) -> Reason | None:
    seen, few = case.seen, case.settings.few_mixed
    if seen.tasks_mixed is None or not seen.tasks_sampled or seen.tasks_sampled < few:
        return None
    return _when(
        seen.tasks_mixed == 0,
        "no task is solved sometimes: whatever is kept, the model does already",
        f"{seen.tasks_mixed} mixed of {seen.tasks_sampled} tasks",
        f"at least 1 of {few} or more tasks",
        clopper_pearson(0, seen.tasks_sampled),
        "advice.few_mixed",
    )


def _not_sampled(case: Case) -> Reason | None:
    return _when(
        case.seen.tasks_solved is None, "how often it succeeds is not measured", "no tries of training tasks", "n tries of some tasks"
    )


def _sometimes_succeeds(case: Case) -> Reason | None:
    seen = case.seen
    if not seen.tasks_sampled or seen.tasks_solved is None:
        return None
    solved = seen.tasks_solved + seen.solved_later
    measured = f"{solved} of {seen.tasks_sampled} tasks solved in {seen.samples_per_task} tries, {seen.tasks_mixed} of them not always"
    return _when(
        solved > 0, "a verifier, and a model that sometimes succeeds", measured, "at least 1", clopper_pearson(solved, seen.tasks_sampled)
    )


def _not_worked_yet(case: Case) -> Reason | None:
    kept = [one for one in _rounds(case.seen) if one.outcome == "keep"]
    return _when(
        not kept,
        "rejection sampling has not worked yet, so there is nothing to compound",
        f"0 of {len(_rounds(case.seen))} rounds kept",
        "at least 1",
    )


def _last_paid(case: Case) -> Reason | None:
    last = next(iter(_rounds(case.seen)[-1:]), None)
    if last is None or last.outcome != "keep" or _since_kept(case.seen):
        return None
    at = last.gain.printed if last.gain is not None else None
    return Reason(
        says="the last round still improved",
        measured="gain of the last round",
        threshold="surely over 0",
        interval=at,
        setting="ladder.alpha",
    )


def _rolled_back(case: Case) -> Reason | None:
    last = _since_kept(case.seen)
    return _when(
        bool(last),
        "the last round was rolled back",
        f"the last round ended: {last[-1].outcome if last else ''}",
        "kept",
        last[-1].gain.printed if last and last[-1].gain else None,
    )


def _plateau(case: Case) -> Reason | None:
    if ended(case.seen, case.settings, case.delta) != "plateau":
        return None
    last = _since_kept(case.seen)[-1].gain
    assert last is not None
    return Reason(
        says=f"a plateau: {case.settings.patience} rounds surely gained too little", measured=f"gain of the last round, at {level_text(last.deciding.level)}%",
        threshold=f"under {_points(case.delta)}", interval=last.deciding, setting="ladder.delta, advice.patience",
    )  # fmt: skip


def _stalled(case: Case) -> Reason | None:
    if ended(case.seen, case.settings, case.delta) != "undecided":
        return None
    gains = [one.gain.printed for one in _since_kept(case.seen) if one.gain is not None]
    return Reason(
        says=f"{case.settings.patience} rounds were rolled back",
        measured="gain of the last round",
        threshold=f"{case.settings.patience} rounds",
        interval=gains[-1] if gains else None,
        setting="advice.patience",
    )


def _another_way(case: Case) -> Reason | None:
    ways = variants(case.seen, case.settings)
    return ways[0][1] if ways and _rolled_back(case) is not None else None


def _no_teacher(case: Case) -> Reason | None:
    return _when(case.seen.teacher is None, "there is no teacher", "no teacher in the settings", "a teacher")


def _same(case: Case) -> Reason | None:
    at = case.seen.teacher
    return (
        None
        if at is None
        else _when(
            at.same,
            "the teacher is the student: there is nothing to learn from it",
            f"{at.name} and the student have the same weights",
            "other weights",
        )
    )


def _terms_are(case: Case, terms: str, says: str) -> Reason | None:
    at = case.seen.teacher
    return (
        None
        if at is None
        else _when(at.terms == terms, says, f"terms of {at.name}: training is {at.terms}", "allowed", setting="teacher.terms")
    )


def _nothing_to_copy(case: Case) -> Reason | None:
    at = case.seen.teacher
    return None if at is None or at.rate is None else _when(
        at.rate.value == 0, "no model shows the behaviour: there is nothing to copy", f"pass@1 of {at.name}", "over 0", at.rate
    )  # fmt: skip


def _teacher_no_better(case: Case) -> Reason | None:
    at = case.seen.teacher
    return None if at is None or at.gain is None else _when(
        at.gain.printed.high < case.delta, "the teacher is surely no better than the student by what is of interest", f"{at.name} over what stands, paired",
        f"under {_points(case.delta)}", at.gain.printed, "ladder.delta",
    )  # fmt: skip


def _teacher_unmeasured(case: Case) -> Reason | None:
    at = case.seen.teacher
    assert at is not None
    known = at.gain.printed if at.gain is not None else None
    return Reason(
        says="whether the teacher is better is not shown",
        measured=f"{at.name} over what stands, paired",
        threshold="over 0",
        interval=known,
    )


def _teacher_probably(case: Case) -> Reason | None:
    at = case.seen.teacher
    return None if at is None or at.gain is None else _when(
        at.gain.printed.value >= case.delta, "a teacher that is probably stronger may be copied; the paired gain of what comes of it decides",
        f"{at.name} over what stands, paired", f"at least {_points(case.delta)}", at.gain.printed, "ladder.delta",
    )  # fmt: skip


def _teacher_better(case: Case) -> Reason | None:
    at = case.seen.teacher
    return None if at is None or at.gain is None else _when(
        at.gain.printed.low > 0, "a stronger teacher exists and may be copied", f"{at.name} over what stands, paired", "over 0", at.gain.printed
    )  # fmt: skip


def _too_weak(case: Case) -> Reason | None:
    last = _since_kept(case.seen)
    if ended(case.seen, case.settings, case.delta) != "undecided":
        return None
    visible = next((one.gain.smallest_visible for one in reversed(last) if one.gain is not None and one.outcome == "undecided"), math.nan)
    at = next((one.gain.deciding for one in reversed(last) if one.gain is not None), None)
    measured = f"the smallest gain this dev split shows is {_points(visible)}" if visible == visible else "the last round's gain"
    return _when(
        visible != visible or visible > case.delta,
        "rounds were rolled back as not proved: more dev families or evaluation.max_n would tell",
        measured,
        f"at most {_points(case.delta)}",
        at,
        "ladder.delta",
    )


def _nothing_given(case: Case) -> Reason | None:
    seen = case.seen
    nothing = seen.verifier is None and not seen.demonstrations and seen.teacher is None
    return _when(
        nothing,
        "nothing to filter with, to imitate or to copy: give the tasks a verifier first",
        "no verifier, demonstrations or teacher",
        "one of them",
    )


def _mend(case: Case) -> Reason | None:
    return _no_trust(case) or _cheated_untrusted(case) if case.seen.verifier is not None else None


def _rate_unknown(case: Case) -> Reason | None:
    return _when(
        case.seen.rate is None and case.seen.verifier is not None,
        "what the model does now is not measured",
        "no tries of dev tasks",
        "pass@1 with its interval",
    )


def _others_first(case: Case) -> Reason | None:
    """Whatever it costs: that a method cannot be paid for is no plateau, and RL would cost more."""
    first: tuple[Action, ...] = (*SUPERVISED, "label", "measure")
    if case.seen.left is not None:
        unbounded = replace(case, seen=structs.replace(case.seen, left=None))
        options = [_weighed(action, unbounded) for action in first]
    else:
        options = [option for option in case.said if option.action in first]
    left = [option.action for option in options if option.standing in ("advised", "open")]
    return _when(bool(left), "supervision has not plateaued", f"left to try or to settle: {', '.join(left)}", "nothing left")


def _no_plateau(case: Case) -> Reason | None:
    """Self-training that was begun and could go on, but ended in another way than a plateau: refused, too weakly tested, or not often enough."""
    outcomes = [one.outcome for one in _rounds(case.seen, refused=True)]
    if not outcomes or _none_solved(case.seen) or _none_mixed(case) is not None:
        return None
    return _when(
        ended(case.seen, case.settings, case.delta) != "plateau",
        "self-training has not plateaued, and is stuck",
        f"its rounds ended: {', '.join(outcomes)}",
        f"{case.settings.patience} that surely gained under {_points(case.delta)}",
        setting="advice.patience, ladder.delta",
    )


def _no_goal(case: Case) -> Reason | None:
    return _when(
        case.seen.goal is None,
        "no goal says whether the gap that is left is worth RL",
        "no goal in the settings",
        "goal: {metric: pass@1, value: ...}",
        case.seen.rate,
        "goal",
    )


def _goal_near(case: Case) -> Reason | None:
    goal, at = case.seen.goal, case.seen.goal_rate
    assert goal is not None
    missed = at is not None and at.high < goal.value
    says = "the goal may be met already: no gap is shown" if at is not None else "whether the goal is met is not measured"
    return _when(not missed, says, f"{goal.metric} of what stands", f"surely under {goal.value:.0%}", at, "goal")


def _rare(case: Case) -> Reason | None:
    seen, above = case.seen, headroom("rejection-sampling", case.seen)
    mixed = seen.tasks_mixed or 0
    return _when(
        mixed >= case.settings.few_mixed and above >= case.settings.headroom,
        "producible but rare, and supervision got no further: what RL is for",
        f"{mixed} mixed tasks; pass@{seen.samples_per_task} is {_points(above)} over pass@1",
        f"{case.settings.few_mixed} tasks, {_points(case.settings.headroom)}",
        seen.pass_n,
        "advice.few_mixed, advice.headroom",
    )


def _in_part(case: Case) -> Reason | None:
    parts = case.seen.rewarded_in_part or 0
    return _when(
        parts >= case.settings.few_mixed,
        "never solved, but rewarded in part: there is something to climb",
        f"scores differ between tries of {parts} tasks never solved",
        f"at least {case.settings.few_mixed}",
        setting="advice.few_mixed",
    )


def _never(case: Case) -> Reason | None:
    seen = case.seen
    if not seen.tasks_sampled or seen.tasks_solved is None:
        return None
    never = seen.tasks_sampled - seen.tasks_solved - seen.solved_later
    return _when(
        never > 0,
        "never produced, and nothing in the reward to climb: a new teacher, hints or a curriculum",
        f"{never} of {seen.tasks_sampled} tasks never solved in "
        f"{seen.samples_per_task} tries, {seen.rewarded_in_part or 0} rewarded in part",
        "0",
        clopper_pearson(never, seen.tasks_sampled),
    )


_TRUST = (
    ("refused", "no verifier, or it fails gold solutions, or it passes no-ops", _no_trust, "a verifier that passes gold and fails no-ops",
     "Rejection sampling and expert iteration are useless without a verifier or a trustworthy reward model"),
    ("refused", "the verifier passes a cheat, and is not trusted", _cheated_untrusted, "a verifier that passes none", ""),
    ("refused", "labels show that purity is under ladder.purity", _impure, "a better verifier", ""),
)  # fmt: skip


def _trusted(action: Action) -> tuple[Rule, ...]:
    return tuple(Rule(action, "refused", when, test, changes, essay) for _, when, test, changes, essay in _TRUST)


def _refused(action: Action) -> Rule:
    return Rule(action, "refused", "it was refused since the last keep", _refused_before(action), "what that refusal asks for")


_SAMPLE = ("open", "no task is solved, and the bound of how many would be is advice.unsolved or more", _few_sampled,
           "tries of more tasks: sharpen run makes them, a larger advice.budget some")  # fmt: skip
_AUDIT = ("open", "the verifier is neither exact nor audited", _unaudited, "29 labels of what it keeps, all good (sharpen label)")

RULES: tuple[Rule, ...] = (
    Rule("ship", "advised", "the lower bound of the goal's metric is at the goal", _goal_met, "a higher goal"),
    Rule("ship", "advised", "the lower bound of pass@1 is over 1 - ladder.delta", _nothing_left, "harder tasks"),
    Rule("ship", "open", "otherwise", _always("what stands is the best so far", "every kept rung"), "a method that is left to try"),
    Rule("few-shot", "refused", "no demonstration, or none passes", _no_demonstrations, "demonstrations that pass"),
    Rule("few-shot", "done", "tried", _tried("few-shot")),
    _refused("few-shot"),
    Rule("few-shot", "done", "its gain is surely under ladder.delta", _few_shot_adds_nothing, "better examples"),
    Rule("few-shot", "refused", "it would cost more than is left to spend", _over_budget("few-shot"), "a larger cap"),
    Rule("few-shot", "advised", "its gain is surely over 0", _few_shot_adds, "a paired gain on more dev tasks"),
    Rule("few-shot", "open", "otherwise", _always("whether examples help is not shown", "gain of few-shot over the bare prompt", "over 0"),
         "few-shot tries of more dev tasks"),
    Rule("sft", "refused", "no demonstration, or none passes", _no_demonstrations, "demonstrations that pass"),
    Rule("sft", "done", "tried", _tried("sft"), "more or better demonstrations"),
    _refused("sft"),
    Rule("sft", "refused", "the demonstrations' pass rate is surely at or under the model's", _demonstrations_worse,
         "better demonstrations", "Its ceiling is exactly the quality of the demonstrations"),
    Rule("sft", "refused", "it would cost more than is left to spend", _over_budget("sft"), "a larger cap"),
    Rule("sft", "advised", "passing demonstrations exist", _demonstrations_pass, "demonstrations that pass less often than the model",
         "SFT — you already have good trajectories"),
    *_trusted("rejection-sampling"),
    Rule("rejection-sampling", "done", "tried from what stands", _sampled_already, "a kept round: then expert iteration"),
    _refused("rejection-sampling"),
    Rule("rejection-sampling", "open", "the model was not sampled", _not_sampled, "n tries of some training tasks"),
    Rule("rejection-sampling", "refused", "no task is solved in n tries, and the bound of how many would be is under advice.unsolved", _no_success,
         "demonstrations, a teacher, hints, easier tasks, or a larger sampling.n", "a model that sometimes succeeds"),
    Rule("rejection-sampling", *_SAMPLE),  # type: ignore[arg-type]
    Rule("rejection-sampling", "done", "no task is mixed", _none_mixed, "harder tasks"),
    Rule("rejection-sampling", *_AUDIT),  # type: ignore[arg-type]
    Rule("rejection-sampling", "refused", "it would cost more than is left to spend", _over_budget("rejection-sampling"), "a larger cap"),
    Rule("rejection-sampling", "advised", "some task is solved", _sometimes_succeeds, "labels that show what it keeps to be impure",
         "Rejection sampling — you have a verifier and a model that sometimes succeeds"),
    *_trusted("expert-iteration"),
    Rule("expert-iteration", "refused", "no round was kept", _not_worked_yet, "a round of rejection sampling that is kept",
         "rejection sampling worked once and is still improving round-over-round"),
    Rule("expert-iteration", "done", "advice.patience rounds one after the other surely gained under ladder.delta", _plateau,
         "another temperature, hints, new tasks", "Compound it until it plateaus"),
    Rule("expert-iteration", "done", "advice.patience rounds were rolled back", _stalled, "more dev families"),
    Rule("expert-iteration", "refused", "the last round was rolled back", _rolled_back, "a retry that is kept"),
    _refused("expert-iteration"),
    Rule("expert-iteration", "refused", "no task is solved in n tries, and the bound of how many would be is under advice.unsolved", _no_success,
         "a larger sampling.n"),
    Rule("expert-iteration", *_SAMPLE),  # type: ignore[arg-type]
    Rule("expert-iteration", "done", "no task is mixed", _none_mixed, "harder tasks"),
    Rule("expert-iteration", *_AUDIT),  # type: ignore[arg-type]
    Rule("expert-iteration", "refused", "it would cost more than is left to spend", _over_budget("expert-iteration"), "a larger cap"),
    Rule("expert-iteration", "advised", "the last round was kept", _last_paid, "a round that is not kept",
         "Expert iteration — rejection sampling worked once and is still improving round-over-round"),
    Rule("expert-iteration", "refused", "otherwise", _always("the last round did not come from self-training", "the rungs so far"),
         "a round that is kept"),
    *_trusted("retry"),
    Rule("retry", "done", "advice.patience rounds one after the other surely gained under ladder.delta", _plateau,
         "another temperature, hints, new tasks"),
    Rule("retry", "done", "advice.patience rounds were rolled back", _stalled, "more dev families"),
    Rule("retry", "refused", "it would cost more than is left to spend", _over_budget("expert-iteration"), "a larger cap"),
    Rule("retry", "advised", "the last round was rolled back, and another way is left", _another_way, "a round that is kept"),
    Rule("retry", "refused", "otherwise",
         _always("no round was rolled back, or no other way is left", "the rungs so far", "a round rolled back"),
         "a round that is rolled back"),
    Rule("distillation", "refused", "no teacher", _no_teacher, "a teacher"),
    Rule("distillation", "refused", "the teacher is the student", _same, "another teacher"),
    Rule("distillation", "refused", "its terms forbid it",
         lambda case: _terms_are(case, "forbidden", "the teacher's terms forbid training on its words"), "a permission, or another teacher",
         "settle that before you build a pipeline on it"),
    Rule("distillation", "done", "tried", _tried("distillation"), "a better teacher"),
    _refused("distillation"),
    Rule("distillation", "refused", "the teacher never succeeds", _nothing_to_copy, "a teacher that sometimes succeeds",
         "Distillation is the wrong tool if no model already exhibits the behavior"),
    Rule("distillation", "refused", "its gain over what stands is surely under ladder.delta", _teacher_no_better, "a better teacher",
         "the student inherits a capability ceiling at the teacher's level"),
    Rule("distillation", "open", "its terms are not settled",
         lambda case: _terms_are(case, "unknown", "whether the teacher's words may train is not settled"), "settled terms",
         "settle that before you build a pipeline on it"),
    Rule("distillation", "refused", "it would cost more than is left to spend", _over_budget("distillation"), "a larger cap"),
    Rule("distillation", "advised", "it is surely better than what stands", _teacher_better, "a paired gain that is not over 0",
         "Distillation — a strong teacher exists and you need it cheaper or smaller"),
    Rule("distillation", "advised", "it is better by ladder.delta or more, as far as is known", _teacher_probably,
         "the teacher's tries of more dev tasks"),
    Rule("distillation", "open", "otherwise", _teacher_unmeasured, "the teacher's tries of more dev tasks"),
    Rule("label", "advised", "the verifier passes its checks, but is neither exact nor audited", _label,
         "labels that clear ladder.purity, or show it to be missed"),
    Rule("label", "done", "otherwise",
         _always("labels would open nothing here", "the verifier's checks", "a verifier that only labels hold back")),
    Rule("measure", "advised", "no verifier, demonstrations or teacher", _nothing_given, "a verifier, demonstrations or a teacher"),
    Rule("measure", "advised", "the verifier fails gold solutions, or passes no-ops or, not trusted, a cheat", _mend,
         "a verifier that passes gold and fails no-ops"),
    Rule("measure", "advised", "pass@1 is not measured", _rate_unknown, "tries of dev tasks"),
    Rule("measure", "advised", "rounds were rolled back that may have gained ladder.delta", _too_weak,
         "more dev families, or evaluation.max_n"),
    Rule("measure", "done", "otherwise", _always("what is known decides", "all of the above")),
    Rule("rl", "refused", "no verifier, or it fails gold solutions, or it passes no-ops", _no_trust, "a verifier that can be trusted"),
    Rule("rl", "refused", "the verifier passes a cheat, trusted or not", _cheated, "a verifier that passes none"),
    Rule("rl", "refused", "labels show that purity is under ladder.purity", _impure, "a better verifier"),
    Rule("rl", "refused", "the lower bound of the goal's metric is at the goal", _goal_met, "a higher goal",
         "the residual gap justifies the instability and infra"),
    Rule("rl", "refused", "a supervised method is left to try, or to settle, whatever it costs", _others_first, "the plateau of these methods",
         "only after the above plateau"),
    Rule("rl", "refused", "some task is solved, and self-training was begun and did not end in a plateau", _no_plateau, "a plateau, or a round that is kept",
         "only after the above plateau"),
    Rule("rl", "open", "no goal", _no_goal, "a goal", "the residual gap justifies the instability and infra"),
    Rule("rl", "refused", "the goal is not surely missed", _goal_near, "a higher goal, or more dev families",
         "the residual gap justifies the instability and infra"),
    Rule("rl", "advised", "advice.few_mixed tasks are mixed and pass@n is advice.headroom over pass@1", _rare,
         "a supervised method that gains again",
         "if you need behavior better than anything currently producible, that is the one case that genuinely requires RL"),
    Rule("rl", "advised", "advice.few_mixed tasks never solved are rewarded in part", _in_part, "rewards that are all alike"),
    Rule("rl", "refused", "otherwise",
         _always("too little to learn from", "mixed tasks, pass@n over pass@1, rewards in part", "advice.few_mixed, advice.headroom"),
         "more mixed tasks"),
    Rule("curriculum", "refused", "a supervised method is left to try, or to settle, whatever it costs", _others_first, "the plateau of these methods"),
    Rule("curriculum", "advised", "tasks are never solved", _never, "a try that passes, or a reward in part",
         "none of these can exceed the best trajectory they were trained on"),
    Rule("curriculum", "refused", "otherwise", _always("no task is out of reach", "tasks never solved", "at least 1"), "harder tasks"),
)  # fmt: skip


def _ci(at: Interval) -> str:
    return f"{at.value:.1%} [{at.low:.1%}, {at.high:.1%}]"
