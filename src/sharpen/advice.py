"""Which method, if any: ``sharpen advise SETTINGS``. Measures a little, reads what a run has left, and asks ``advisor.choose``.

What is there is read and never bought again, also where somebody made half of it by hand; what is missing is bought under the names by which the run then
finds it, for ``advice.budget`` (2 %) of what the run is planned to take. What a run folder says is read in ``measurements``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace
from rich.console import Group, RenderableType
from rich.text import Text

from sharpen import advisor, loop
from sharpen.budget import Uniform
from sharpen.measurements import Found, as_last_wanted, measured, open_bench, wanted
from sharpen.models import load_model
from sharpen.plan import Plan, plan
from sharpen.policies.meter import SPENT, Meter
from sharpen.records import (
    Action,
    Advice,
    Interval,
    Measurements,
    Model,
    Option,
    TeacherSeen,
)
from sharpen.report.live import Live
from sharpen.report.page import count as many
from sharpen.settings import RunSettings, resolved, to_yaml
from sharpen.store.files import write_json
from sharpen.store.run import Run
from sharpen.store.rungs import RungName
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
    found = Found.of(folder, settings)
    bought = Bought(planned=settings.advice.budget * whole, run=whole)
    said = [*found.said, *contradictions(settings)]
    if tasks.verifier is None:
        teacher = TeacherSeen(name=settings.teacher.model or "the teacher", terms="allowed") if settings.teacher is not None else None
        # Nobody can say how good any of it is.
        seen = Measurements(demonstrations=_unjudged(tasks), teacher=teacher, tried=found.tried, goal=settings.goal)
    else:
        seen, cost = _look(settings, tasks, model, folder, found, _share(planned, settings, bought.planned))
        bought = Bought(tries=cost[0], tokens=cost[1], planned=bought.planned, run=whole)
    seen = replace(seen, costs=_costs(planned), left=_left(settings, folder))
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
    settings: RunSettings, tasks: TaskSet, model: Model, folder: Path, found: Found, share: tuple[int, int]
) -> tuple[Measurements, tuple[int, int]]:
    """What is there and, where nothing is, tries of so many dev and training tasks; with the calls and tokens that they took."""
    run = Run.open(folder, to_yaml(settings), resolved)
    # Its waves are planned by what they bring: only the tries that are fixed beforehand tell how often the model succeeds.
    uniform = replace(settings, sampling=replace(settings.sampling, budget=Uniform()))
    try:
        with Live() as live, loop.interruptible(live.say) as asked, open_bench(uniform, run, tasks, model, live, asked) as bench:
            before = bench.meter.bill.total
            seen = measured(bench, settings, found, share)
            after = bench.meter.bill.total
            if as_last_wanted(run) != settings:
                run.note({"event": "asked for advice", **wanted(settings)})
            cost = after.calls - before.calls, after.tokens - before.tokens
            if cost[0]:
                run.note({"event": "advised", "share": share, "calls": cost[0], "tokens": cost[1]})
    finally:
        run.close()
    return seen, cost


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
    lines += [
        f"  {WORDS[one.action]}: {_standing_word(one)}{advisor.reason_line(one.reason)}" for one in advice.options if one not in shown
    ]
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
    yield f"  why: {advisor.reason_line(option.reason)}"
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


def _points(at: Interval) -> str:
    return f"{100 * at.value:+.1f} points [{100 * at.low:+.1f}, {100 * at.high:+.1f}] (95 %)"
