"""Which method, if any: ``sharpen advise SETTINGS``. Measures a little, reads what a run has left, and asks ``advisor.choose``.

What is there is read and never bought again, also where somebody made half of it by hand; what is missing is bought under the names by which the run then
finds it, for ``advice.budget`` (2 %) of what the run is planned to take.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace
from rich.console import Group, RenderableType
from rich.text import Text

from sharpen import advisor, loop
from sharpen.agents.checks import gold_and_noop
from sharpen.audit import AUDIT
from sharpen.budget import Uniform
from sharpen.errors import Unsettled
from sharpen.evaluation import count, succeeded, weigh
from sharpen.labels import content, measure, read_labels
from sharpen.methods.base import Bench, Prompted
from sharpen.methods.distillation import ask_teacher, is_student, title
from sharpen.methods.hints import hintable
from sharpen.methods.prompt import few_shot
from sharpen.models import load_model
from sharpen.plan import FIRST, Plan, plan
from sharpen.policies.meter import SPENT, Meter
from sharpen.records import (
    Action,
    Advice,
    Audit,
    Decision,
    Evaluation,
    Interval,
    Measurements,
    Model,
    Option,
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
from sharpen.report.page import count as many
from sharpen.run import open_bench
from sharpen.sampling import WAVES, Pool, Waves
from sharpen.settings import RunSettings, to_yaml
from sharpen.stats import paired_gain, pass_interval
from sharpen.store.files import read_if_there, write_json
from sharpen.store.run import Run
from sharpen.store.rungs import RungName
from sharpen.store.segments import Segments, order
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import load_tasks

ADVICE = "advice.json"


@dataclass(frozen=True)
class Bought:
    """What the advice cost: tries, their tokens, those that ``advice.budget`` allows, and those that the whole ``run`` is planned to take."""

    tries: int = 0
    tokens: int = 0
    planned: float = 0.0
    run: float = 0.0


@dataclass(frozen=True)
class Told:
    """The advice, what it rests on, what that cost, and what the settings contradict themselves in."""

    advice: Advice
    seen: Measurements
    bought: Bought
    said: tuple[str, ...] = ()


def advise(settings: RunSettings, runs: Path) -> Told:
    """What to do next in the run that ``settings`` describe, whether it was begun or not.

    Buys tries only of what nothing is known of. RunError where the run was made with other settings and something is missing, or another process holds it.
    """
    tasks = load_tasks(settings.tasks, settings.demonstrations)
    folder, model = runs / settings.name, load_model(settings.model, settings.template)
    planned = plan(settings, runs, 0)
    whole = float(sum(spent.tokens + trained for _, spent, trained in planned.stages))
    found = _Found.of(folder, settings)
    bought = Bought(planned=settings.advice.budget * whole, run=whole)
    said = [*found.said, *contradictions(settings)]
    if tasks.verifier is None:
        teacher = TeacherSeen(name=settings.teacher.model or "the teacher", terms="allowed") if settings.teacher is not None else None
        seen = Measurements(demonstrations=_unjudged(tasks), teacher=teacher)  # nobody can say how good it is
    else:
        seen, cost = _look(settings, tasks, model, folder, found, _share(planned, settings, bought.planned))
        bought = Bought(tries=cost[0], tokens=cost[1], planned=bought.planned, run=whole)
    audited = read_if_there(folder / AUDIT, Audit)
    seen = replace(
        seen,
        tried=found.tried,
        purity_forecast=audited.forecast if audited is not None else None,
        goal=settings.goal,
        costs=_costs(planned),
        left=_left(settings, folder),
    )
    told = Told(advisor.choose(seen, settings.advice, settings.ladder.delta), seen, bought, tuple(said))
    if folder.exists():
        write_json(folder / ADVICE, told.advice)
    return told


def contradictions(settings: RunSettings) -> Iterator[str]:
    """What the settings ask for that cannot both be had."""
    rungs = settings.ladder.rungs
    if "expert-iteration" in rungs and "rejection-sampling" not in rungs:
        yield "ladder.rungs has expert-iteration without rejection-sampling before it: a round has nothing to compound; add it"
    if settings.sampling.n == 1 and any(rung in advisor.ROUNDS for rung in rungs):
        yield "sampling.n is 1: no task can be seen to be solved sometimes, and rejection sampling keeps nothing that the model does not do anyway; raise it"
    if settings.goal is not None and settings.goal.metric != "pass@1" and settings.agent is None:
        yield f"goal.metric is {settings.goal.metric}, but every rung is judged by pass@1: a gain in one may cost the other"


# ---------------------------------------------------------------- what is there


@dataclass(frozen=True)
class _Found:
    """What a run folder holds, whoever made it: the rungs in order, which stands, and the tries of the last that sampled from what stands."""

    tried: tuple[Tried, ...] = ()
    standing: str = ""
    evaluation: Evaluation | None = None
    sampled: str = ""
    purity: RoundPurity | None = None
    said: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path, settings: RunSettings) -> _Found:
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
            elif decision is not None and decision.outcome != "baseline" and decision.outcome != "proceed":
                tried.append(Tried(method=method, outcome=decision.outcome, gain=decision.gain, variant=way))
                if decision.outcome == "keep":
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


def _unjudged(tasks: TaskSet) -> int:
    """Demonstrations of a task set without a verifier: nobody can say whether they pass."""
    if tasks.recorded is not None:
        return len(tasks.recorded.trajectories)
    return sum(tasks.environment.expert(task) is not None for task in tasks.split("demo").tasks)


# ---------------------------------------------------------------- what is measured


def _share(planned: Plan, settings: RunSettings, tokens: float) -> tuple[int, int]:
    """How many dev and training tasks ``tokens`` pay for: half go into sampling.n tries of each of the latter, half into one try of each of the former,
    with the bare prompt and, where the ladder has those rungs, with examples, and by the teacher. At least two dev tasks and a training task."""

    def each(end: str, otherwise: float) -> float:
        return next(
            (spent.tokens / stage.tries for stage, spent, _ in planned.stages if stage.name.endswith(end) and stage.tries), otherwise
        )

    bare = each("000-base/dev", 1.0)
    beside = each("-few-shot/dev", 0.0) + each("/teacher/dev", 0.0)
    return max(int(tokens / 2 / (bare + beside)), 2), max(int(tokens / 2 / (each("/sampling", bare) * settings.sampling.n)), 1)


def _look(
    settings: RunSettings, tasks: TaskSet, model: Model, folder: Path, found: _Found, share: tuple[int, int]
) -> tuple[Measurements, tuple[int, int]]:
    """What is there and, where nothing is, tries of so many dev and training tasks; with the calls and tokens that they took."""
    run = Run.open(folder, to_yaml(settings))
    # Its waves are planned by what they bring: only the tries that are fixed beforehand tell how often the model succeeds.
    uniform = replace(settings, sampling=replace(settings.sampling, budget=Uniform()))
    try:
        with Live() as live, loop.interruptible(live.say) as asked, open_bench(uniform, run, tasks, model, live, asked) as bench:
            before = bench.meter.bill.total
            seen = _measured(bench, settings, found, share)
            after = bench.meter.bill.total
            cost = after.calls - before.calls, after.tokens - before.tokens
            if cost[0]:
                run.note({"event": "advised", "share": share, "calls": cost[0], "tokens": cost[1]})
    finally:
        run.close()
    return seen, cost


def _measured(bench: Bench, settings: RunSettings, found: _Found, share: tuple[int, int]) -> Measurements:
    # As many as the last time, so that nothing is bought twice where a better plan would now allow more.
    few, some = next((note["share"] for note in reversed(bench.run.ledger()) if note.get("event") == "advised"), share)
    demonstrations = bench.demonstrations()
    worth = weigh(demonstrations, {}, bench.seed)
    checked = loop.run(gold_and_noop(bench.checking()))
    seen = Measurements(
        demonstrations=worth.count, demonstrations_passing=worth.passed, demonstration_rate=worth.pass_rate if worth.count else None,
        verifier=bench.verifier.name, verifier_exact=bench.verifier.exact, gold_passes=checked.gold_passes, noop_fails=checked.noop_fails,
        trusted_unaudited=settings.ladder.trust_unaudited_verifier,
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
            shown = few_shot(bench, name, base).proposal
            with_shots = _results(bench.sample(f"{name}/dev", shown, dev, bench.evaluation, first=few), dev)
            seen = replace(seen, few_shot=paired_gain(at, with_shots, 0.95, bench.seed, ("the bare prompt", "few-shot")))
    return replace(_sampled(bench, settings, found, seen, some), teacher=_taught(bench, settings, found, few))


def _taught(bench: Bench, settings: RunSettings, found: _Found, few: int) -> TeacherSeen | None:
    """The teacher in the settings: whether its words may train, and its gain over what stands on the dev tasks that it was tried on.

    Where no rung measured it, it is asked for one try of each of ``few``, but not before its words may train.
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
    measured = read_if_there(bench.run.folder / name / "teacher.json", Evaluation)
    if measured is not None:
        theirs = measured.tasks
    else:
        _, pool = ask_teacher(bench, name, standing, first=few)
        theirs = _results(pool, list(pool.tasks.values()))
    ours = found.evaluation.tasks if found.evaluation is not None else _bare(bench, standing, few)
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


def _sampled(bench: Bench, settings: RunSettings, found: _Found, seen: Measurements, some: int) -> Measurements:
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
        if standing is None:
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


def _standing(bench: Bench, found: _Found) -> Prompted | None:
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


# ---------------------------------------------------------------- what it takes


def _costs(planned: Plan) -> dict[str, float]:
    """Tokens that one try of each method takes, by the plan: sampling, training and its evaluation on dev."""
    costs: dict[str, float] = {}
    by_rung: dict[RungName, float] = defaultdict(float)
    for stage, spent, trained in planned.stages:
        rung = RungName.of(stage.name.split("/")[1])
        if rung is not None and not rung.control and not stage.name.endswith("/test"):
            by_rung[rung] += spent.tokens + trained
    for rung, tokens in by_rung.items():
        costs[rung.method] = tokens  # of several rounds the last, which trains on most
    costs.pop("base", None)
    if "rejection-sampling" in costs:
        costs.setdefault("expert-iteration", costs["rejection-sampling"])
    return costs


def _left(settings: RunSettings, folder: Path) -> float | None:
    """Tokens that the cap leaves, where there is one."""
    if settings.spending.max_tokens is None:
        return None
    spent = Meter(settings.spending, folder / SPENT).bill.total.tokens if (folder / SPENT).exists() else 0
    return float(max(settings.spending.max_tokens - spent, 0))


# ---------------------------------------------------------------- as text


WORDS: Mapping[Action, str] = {
    "ship": "ship what stands",
    "few-shot": "prompt with examples",
    "sft": "SFT on the demonstrations",
    "rejection-sampling": "rejection sampling",
    "expert-iteration": "expert iteration",
    "retry": "the last round again, in another way",
    "distillation": "distillation from the teacher",
    "label": "label what the verifier keeps",
    "measure": "measure more",
    "rl": "RL",
    "curriculum": "a new teacher, hints, or a curriculum",
}


def show(told: Told) -> RenderableType:
    """One recommendation, the runner-up, and a line for everything else."""
    advice, bought = told.advice, told.bought
    lines = list(_option("advice", advice.recommendation, bought.run))
    if advice.runner_up is not None:
        lines += _option("else", advice.runner_up, bought.run)
    shown = [advice.recommendation, advice.runner_up]
    lines += ["", "the rest"]
    lines += [f"  {WORDS[one.action]}: {_standing_word(one)}{_reason(one)}" for one in advice.options if one not in shown]
    if told.said or advice.notes:
        lines += ["", *(f"- {line}" for line in (*told.said, *advice.notes))]
    if bought.tries:
        share = f", {bought.tokens / bought.run:.1%} of what the run is planned to take" if bought.run else ""
        lines += ["", f"measured with {bought.tries} calls, {many(bought.tokens)} tokens{share}; the run finds them made"]
    else:
        lines += ["", "measured with nothing new: all of it was there"]
    lines.append("forecasts are fitted on simulated worlds (docs/advisor.md): where to look first, not what will come")
    return Group(*(Text(line) for line in lines))


def _option(title: str, option: Option, whole: float) -> Iterator[str]:
    yield f"{title}: {WORDS[option.action]}" + ("" if option.standing == "advised" else f" ({option.standing})")
    yield f"  why: {_reason(option)}"
    if option.gain is not None:
        yield f"  would probably gain {_points(option.gain)}"
    if option.cost is not None:
        yield f"  costs about {many(round(option.cost))} tokens" + (
            f", {option.cost / whole:.0%} of what the run is planned to take" if whole else ""
        )
    for way in option.how:
        yield f"  how: {way}"
    if option.changes:
        yield f"  would change it: {option.changes}"


def _standing_word(option: Option) -> str:
    return "" if option.standing == "advised" else f"{option.standing}: "


def _reason(option: Option) -> str:
    why = option.reason
    at = f" {why.interval.value:.1%} [{why.interval.low:.1%}, {why.interval.high:.1%}]" if why.interval is not None else ""
    setting = f", {why.setting}" if why.setting else ""
    return f"{why.says} ({why.measured}{at}; asked for: {why.threshold}{setting})"


def _points(at: Interval) -> str:
    return f"{100 * at.value:+.1f} points [{100 * at.low:+.1f}, {100 * at.high:+.1f}] (95 %)"
