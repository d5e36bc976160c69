"""A run folder -> Measurements: all that the advisor may know of it. ``measured`` reads what is there, and buys tries only where it is told how many.

``sharpen advise`` buys a few, the hand-over none; both ask ``advisor.choose`` of what is found here, so that they say the same of the same run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from sharpen import advisor
from sharpen.audit import AUDIT, checked
from sharpen.errors import Unsettled
from sharpen.evaluation import count, succeeded, weigh
from sharpen.labels import content, measure, read_labels
from sharpen.methods.base import Bench, Prompted
from sharpen.methods.distillation import ask_teacher, is_student, title
from sharpen.methods.hints import hintable
from sharpen.methods.prompt import few_shot
from sharpen.models import load_model
from sharpen.policies.meter import SPENT, Meter
from sharpen.records import (
    Audit,
    Decision,
    Evaluation,
    Interval,
    Measurements,
    Model,
    RoundPurity,
    SampleKey,
    Task,
    TaskResult,
    TeacherSeen,
    Trajectory,
    Tried,
    Verdict,
)
from sharpen.report.live import Live
from sharpen.sampling import WAVES, Pool, Waves
from sharpen.settings import NO_PART, RunSettings, load_settings
from sharpen.stats import paired_gain, pass_interval
from sharpen.store.files import read_if_there
from sharpen.store.run import SETTINGS, Run
from sharpen.store.rungs import BASE, RungName
from sharpen.store.segments import Segments, order
from sharpen.tasks.base import TaskSet
from sharpen.verifiers.base import risks

FIRST = f"{BASE}/dev"


def open_bench(
    settings: RunSettings, run: Run, tasks: TaskSet, model: Model, live: Live | None = None, asked: Callable[[], str] = lambda: ""
) -> Bench:
    """The bench that ``settings`` describe, with ``live`` to hear of its work."""
    heard: dict[str, Any] = {} if live is None else {"listen": live, "say": live.say}
    return Bench(
        run=run, tasks=tasks, base=model, seed=settings.seed, engine=settings.engine, sampling=settings.sampling,
        selection=settings.selection, training=settings.training, evaluation=settings.evaluation, few_shot=settings.few_shot,
        harness=settings.harness, several=settings.agent, teacher=settings.teacher, distillation=settings.distillation,
        hints=settings.hints, preference=settings.preference, permissions=settings.terms,
        meter=Meter(settings.spending, run.folder / SPENT, asked), **heard,
    )  # fmt: skip


def wanted(settings: RunSettings) -> dict[str, Any]:
    """What a run's own settings leave out, for its ledger: goals, permissions and thresholds as they were when it was last asked for."""
    return {key: msgspec.to_builtins(getattr(settings, key)) for key in NO_PART}


def as_last_wanted(run: Run) -> RunSettings:
    """The settings of the run, with the goal, permissions and thresholds that the last command in its folder was given."""
    settings, known = load_settings(run.folder / SETTINGS, {}), msgspec.structs.fields(RunSettings)
    note: Mapping[str, Any] = next((line for line in reversed(run.ledger()) if "goal" in line), {})
    given: Mapping[str, Any] = {
        one.name: msgspec.convert(note[one.name], one.type) for one in known if one.name in NO_PART and one.name in note
    }
    return replace(settings, **given)


# ---------------------------------------------------------------- what is there


@dataclass(frozen=True)
class Found:
    """What a run folder holds, whoever made it: the rungs in order, which stands, and the tries of the last that sampled from what stands."""

    tried: tuple[Tried, ...] = ()
    standing: str = ""
    evaluation: Evaluation | None = None
    sampled: str = ""
    purity: RoundPurity | None = None
    said: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path, settings: RunSettings) -> Found:
        tried: list[Tried] = []
        said: list[str] = []
        standing, evaluation, sampled, purity = "", None, "", None
        for path in sorted((folder / "rungs").glob("*")):
            if (rung := RungName.of(path.name)) is None or rung.control:
                continue
            method, way = rung.method, rung.variant
            decision, dev = read_if_there(path / "decision.json", Decision), read_if_there(path / "evaluation.json", Evaluation)
            if decision is None and dev is not None and evaluation is not None:
                decision = _judged(settings, path.name, evaluation, dev)
                said.append(f"{path.name} was evaluated but not decided on: {decision.outcome}, {decision.reasons[0]}")
            # A teacher's tries, and those at another temperature, do not say how often the model succeeds.
            if method != "distillation" and way != "temperature" and (path / "sampling" / "verdicts").is_dir():
                sampled, purity = path.name, read_if_there(path / "purity.json", RoundPurity)
            if method == "base":
                standing, evaluation = path.name, dev
            elif decision is not None and (one := advisor.tried(method, replace(decision, variant=way))) is not None:
                tried.append(one)
                if one.outcome == "keep":
                    standing, evaluation = path.name, dev
        if sampled and not standing.endswith("-base") and sampled <= standing:
            said.append(f"pass@n and mixed tasks are of {sampled}'s tries, which what stood before {standing} made")
        return cls(tuple(tried), standing, evaluation, sampled, purity, tuple(said))


def _judged(settings: RunSettings, name: str, base: Evaluation, dev: Evaluation) -> Decision:
    """What the ladder would say of a rung that somebody evaluated by hand."""
    try:
        gain = paired_gain(
            base.tasks, dev.tasks, settings.ladder.level(len(settings.evaluation.looks)), settings.seed, ("what stood", name)
        )
    except ValueError as error:
        return Decision(outcome="undecided", action="evaluate it again", reasons=(str(error),))
    return advisor.judge_gain(gain, settings.ladder.delta)


# ---------------------------------------------------------------- what is measured


def measured(bench: Bench, settings: RunSettings, found: Found, share: tuple[int, int] | None = None) -> Measurements:
    """All that is known of the run, and what it was asked for: the goal. What nothing is known of is bought for ``share``, so many dev and training tasks.

    ``costs`` and ``left`` are the plan's to say. Without a share nothing is bought, and what is not there stays unknown.
    """
    ledger = bench.run.ledger()
    few, some = share or (0, 0)
    if share is not None:
        # As many as the last time, so that nothing is bought twice where a better plan would now allow more.
        few, some = next((note["share"] for note in reversed(ledger) if note.get("event") == "advised"), share)
    demonstrations = bench.demonstrations()
    worth = weigh(demonstrations, {}, bench.seed)
    shown = checked(bench.checking(), bench.run.folder, bench.sampling.verifier_timeout_s)
    audited = read_if_there(bench.run.folder / AUDIT, Audit)
    seen = Measurements(
        demonstrations=worth.count, demonstrations_passing=worth.passed, demonstration_rate=worth.pass_rate if worth.count else None,
        verifier=bench.verifier.name, verifier_exact=bench.verifier.exact, gold_passes=shown.checks.gold_passes,
        noop_fails=shown.checks.noop_fails, cheat=shown.cheat or "", risks=risks(bench.verifier),
        trusted_unaudited=settings.ladder.trust_unaudited_verifier or any(note.get("event") == "trusted" for note in ledger),
        tried=found.tried, goal=settings.goal, purity_forecast=audited.forecast if audited is not None else None,
    )  # fmt: skip
    base = Prompted(bench.base)
    dev = bench.tasks.split("dev").tasks
    few = min(few, len(dev))
    if found.evaluation is not None:
        rate = pass_interval(found.evaluation.tasks, 1, 0.95, bench.seed)
        goal = _goal(settings, found.evaluation.tasks, bench.seed)
        seen = replace(seen, rate=rate, goal_rate=goal)
    elif few:
        at = _bare(bench, base, few)
        seen = replace(seen, rate=pass_interval(at, 1, 0.95, bench.seed), goal_rate=_goal(settings, at, bench.seed))
        if worth.passed and bench.harness is None and "few-shot" in settings.ladder.climbs:
            name = _rung(settings, ("few-shot",))
            prompted = few_shot(bench, name, base).proposal
            with_shots = _results(bench.sample(f"{name}/dev", prompted, dev, bench.evaluation, first=few), dev)
            seen = replace(seen, few_shot=paired_gain(at, with_shots, 0.95, bench.seed, ("the bare prompt", "few-shot")))
    return replace(_sampled(bench, settings, found, seen, some), teacher=_taught(bench, settings, found, few))


def _taught(bench: Bench, settings: RunSettings, found: Found, few: int) -> TeacherSeen | None:
    """The teacher in the settings: whether its words may train, and its gain over what stands on the dev tasks that it was tried on.

    Where no rung measured it, it is asked for one try of each of ``few`` (none: it is not), but not before its words may train.
    """
    standing = _standing(bench, found) or Prompted(bench.base)
    if settings.teacher is None:
        return None
    agent, cast = bench.teacher_of(standing)
    seen = TeacherSeen(name=title(agent, cast), terms="allowed", same=is_student(bench, standing))
    try:
        bench.may_teach()
    except Unsettled as error:
        return replace(seen, terms="forbidden" if error.forbids else "unknown")
    if seen.same:
        return seen
    name = _rung(settings, ("distillation",))
    there = read_if_there(bench.run.folder / name / "teacher.json", Evaluation)
    if there is not None:
        theirs = there.tasks
    elif not few:
        return seen
    else:
        _, pool = ask_teacher(bench, name, standing, first=few)
        theirs = _results(pool, list(pool.tasks.values()))
    ours = found.evaluation.tasks if found.evaluation is not None else _bare(bench, standing, few) if few else ()
    both = {one.task for one in ours} & {one.task for one in theirs}
    if not both:
        return seen
    mine, its = ([one for one in results if one.task in both] for results in (ours, theirs))
    gain = paired_gain(mine, its, 0.95, bench.seed, ("what stands", seen.name))
    return replace(seen, rate=pass_interval(its, 1, 0.95, bench.seed), gain=gain)


def _bare(bench: Bench, base: Prompted, few: int) -> tuple[TaskResult, ...]:
    """One try of each of ``few`` dev tasks with the bare prompt, which the run's first stage finds made."""
    dev = bench.tasks.split("dev").tasks
    return _results(bench.sample(FIRST, base, dev, bench.evaluation, first=few), dev)


def _rung(settings: RunSettings, methods: Sequence[str]) -> str:
    """The folder of the first rung by one of ``methods``, where nothing has been tried yet."""
    climbs = settings.ladder.climbs
    number = next((at for at, rung in enumerate(climbs, 1) if rung in methods), len(climbs) + 1)
    return RungName(number, climbs[number - 1] if number <= len(climbs) else methods[0]).stage


def _sampled(bench: Bench, settings: RunSettings, found: Found, seen: Measurements, some: int) -> Measurements:
    """How often training tasks are ever solved, from the last round's tries, or from a few that are made now by what stands."""
    train = bench.tasks.split("train").tasks
    if not train:
        return seen
    n, later = settings.sampling.n, frozenset[str]()
    if found.sampled:
        place = bench.run.folder / "rungs" / found.sampled / "sampling"
        waves = read_if_there(place / WAVES, Waves)
        pool, later = _pool(place, train, waves.budget.first if waves is not None else n)
    else:
        standing = _standing(bench, found)
        if standing is None or not some:
            return seen
        some = min(some, len(train))
        chosen = [train[at * len(train) // some] for at in range(some)]
        pool = bench.sample(f"{_rung(settings, advisor.ROUNDS)}/sampling", standing, chosen, bench.sampling, range(n), first=some * n)
    if seen.purity is None and not seen.verifier_exact:
        kept = {key: content(pool.trajectories[key]) for key in pool.wanted if pool.verdicts[key]}
        labels = read_labels(settings.labels_place)
        seen = replace(seen, purity=found.purity.purity if found.purity is not None else measure(kept, labels, settings.ladder.purity))
    seen = succeeded(seen, pool, later, bench.seed, least=min(n, 2))
    return replace(seen, hintable=hintable(bench, pool, later))


def _standing(bench: Bench, found: Found) -> Prompted | None:
    """The model that stands: the base, or what a rung trained. None where it is a prompt, whose examples the folder does not hold."""
    if not found.standing or found.standing.endswith("-base"):
        return Prompted(bench.base)
    trained = bench.run.folder / "rungs" / found.standing / "model"
    return Prompted(load_model(str(trained))) if trained.is_dir() else None


def _pool(folder: Path, tasks: Sequence[Task], n: int) -> tuple[Pool, frozenset[str]]:
    """A round's tries as they lie there, the first ``n`` of each task, which were fixed before any was made; and the tasks that others solved."""
    by_key = {task.key: task for task in tasks}
    trajectories, verdicts = Segments(folder / "trajectories", Trajectory).records, Segments(folder / "verdicts", Verdict).records
    made: dict[tuple[str, str], list[SampleKey]] = defaultdict(list)
    for key in sorted((key for key in verdicts if key.task in by_key), key=order):
        made[key.model, key.sampling].append(key)
    keys = max(made.values(), key=len, default=[])
    wanted = tuple(key for key in keys if key.index < n)
    later = frozenset(key.task for key in keys if key.index >= n and verdicts[key])
    return Pool({key.task: by_key[key.task] for key in wanted}, wanted, trajectories, verdicts), later


def _results(pool: Pool, tasks: Sequence[Task]) -> tuple[TaskResult, ...]:
    return tuple(one for one in count(pool, tasks) if one.samples)


def _goal(settings: RunSettings, results: Sequence[TaskResult], seed: int) -> Interval | None:
    """The goal's metric, where there are tries enough to estimate it."""
    if settings.goal is None:
        return None
    at = pass_interval(results, int(settings.goal.metric.removeprefix("pass@")), 0.95, seed)
    return None if math.isnan(at.value) else at
