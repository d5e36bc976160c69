"""Measurements -> Decision. Pure: knows nothing of models or files, only numbers.

First form: it refuses a method that would be useless here and says what would lift the refusal; the choice among the
methods is the ladder's fixed order.
"""

from __future__ import annotations

import math
from typing import Literal

from sharpen.records import Decision, Gain, Interval, Measurements, Purity, Teaching
from sharpen.stats import decide

Method = Literal["few-shot", "sft", "rejection-sampling", "expert-iteration", "distillation"]
METHODS: tuple[Method, ...] = ("few-shot", "sft", "rejection-sampling", "expert-iteration", "distillation")


def advise(method: Method, seen: Measurements) -> Decision:
    """Whether ``method`` may be tried on what has been measured. ``refuse`` carries what would lift the refusal."""
    obstacle = {"few-shot": _without_demonstrations, "sft": _without_demonstrations}.get(method, _without_signal)(seen)
    if obstacle is not None:
        return Decision(outcome="refuse", action=f"leave out {method}", reasons=(obstacle,))
    return Decision(outcome="proceed", action=f"try {method}", reasons=(_ground(method, seen),))


def after_sampling(method: Method, seen: Measurements) -> Decision:
    """Whether survivors are worth training on, once the tries have been made and judged."""
    assert seen.tasks_sampled is not None and seen.samples_per_task is not None and seen.tasks_solved is not None
    tries = f"{seen.samples_per_task} tries on each of {seen.tasks_sampled} tasks"
    if seen.tasks_solved + seen.solved_later == 0:
        lift = (
            "raise distillation.n, or name a stronger teacher"
            if method == "distillation"
            else "teach by demonstrations or a teacher first, give hints, choose easier tasks, or raise sampling.n"
        )
        reason = f"{tries} hold no success: there is nothing to keep; {lift}"
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
        f"{d.value:+.1%} [{d.low:+.1%}, {d.high:+.1%}] at {d.level:.1%} over {d.n} families, {test}; of the {teaching.lacks} tasks that the student passed "
        f"in none of {teaching.student_tries} tries the teacher solves {teaching.solves}"
    )


def gate(method: Method, seen: Measurements, ask: str, trust: str = "--trust-unaudited-verifier") -> Decision:
    """Whether what was selected may train (honesty rule 4): the verifier is exact, or labels show that what it keeps is pure.

    Neither: refused, with what is missing and ``ask``, the command that asks for it; unless the user trusts the verifier unaudited, as by ``trust``, and then
    the decision carries the banner. Labels that show it to be impure are an audit, and no trust goes past them.
    """
    purity, go = seen.purity, f"train on the survivors of {method}"
    if seen.verifier_exact:
        return Decision(outcome="proceed", action=go, reasons=(f"the verifier {seen.verifier} is exact",))
    assert purity is not None
    if seen.cheat and not seen.trusted_unaudited:
        reason = f"the verifier {seen.verifier} passes a cheat ({seen.cheat}); mend it, claim that it is exact, or go on with {trust}"
        return Decision(outcome="refuse", action=f"leave out {method}", reasons=(reason,))
    if purity.outcome == "clears" and not seen.cheat:
        return Decision(outcome="proceed", action=go, reasons=(purity_line(purity),))
    if purity.outcome == "below":
        reason = f"the verifier {seen.verifier} keeps too much that is not good: {purity_line(purity)}; mend it, or lower ladder.purity"
    elif seen.trusted_unaudited:
        banner = f"the verifier {seen.verifier} passes a cheat: {seen.cheat.partition(':')[0]}" if seen.cheat else unaudited(seen.verifier)
        return Decision(outcome="proceed", action=go, reasons=(purity_line(purity),), banners=(banner,))
    else:
        reason = (
            f"the verifier {seen.verifier} is neither exact nor audited: {purity_line(purity)}; {ask} asks for them, and then this command goes on; "
            f"{trust} goes on without"
        )
    return Decision(outcome="refuse", action=f"leave out {method}", reasons=(reason,))


def unaudited(verifier: str | None) -> str:
    """The banner on everything that is made of what an unaudited verifier kept."""
    return f"nobody audited the verifier {verifier}: how much of what it kept is truly good is not known"


def purity_line(purity: Purity) -> str:
    """Purity in a line: the estimate with its bound and n, or what is missing."""
    labelled = purity.good + purity.bad + purity.unsure
    unsure = f", {purity.unsure} unsure and not counted as good" if purity.unsure else ""
    seen = f"{purity.good} of {labelled} labelled rows are good{unsure}" if labelled else "no row is labelled"
    if labelled:
        value = "undefined" if math.isnan(purity.share.value) else f"{purity.share.value:.1%}"
        seen += f": purity {value}, lower bound {purity.share.low:.1%} ({purity.share.level:.0%}, one-sided, at any look)"
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
    numbers = f"paired gain {d.value:+.1%} [{d.low:+.1%}, {d.high:+.1%}] at {d.level:.1%} over {d.n} families"
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
    line = f"off-task panel {d.value:+.1%} [{d.low:+.1%}, {d.high:+.1%}] at {d.level:.1%} over {d.n} families since {aside.base.removeprefix('rungs/')}"
    if d.high < -drop:
        reasons = (*decision.reasons, f"{line}: it has forgotten what it could do")
        return Decision(outcome="worse", action="roll it back: it forgets", reasons=reasons, gain=decision.gain)
    return Decision(outcome=decision.outcome, action=decision.action, reasons=(*decision.reasons, line), gain=decision.gain)


def _rate(interval: Interval) -> str:
    return "at an undefined rate" if math.isnan(interval.value) else f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _percent(share: float) -> str:
    return "undefined, since no family differs" if math.isnan(share) else f"{share:.1%}"


def _without_demonstrations(seen: Measurements) -> str | None:
    if seen.demonstrations == 0:
        return "there are no demonstrations; give the demo split tasks whose solutions are known"
    if not seen.demonstrations_passing:
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
