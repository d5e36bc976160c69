"""What the advisor's ladders come to where the truth is known, beside simple rules: ``python benchmarks/advisor.py --worlds 2000 --out rows.jsonl``.

Every ladder asks ``advisor.choose`` for its next step, judges with ``stats.paired_gain`` and ``advisor.judge_gain``, and passes ``advisor.gate``; only
models, tasks and labellers are made up (``worlds.py``). Rows are appended, one a world, and worlds that are there are not run again, so it can be cut
into pieces. ``--fit`` runs tuning seeds instead and prints ``advisor.FITTED``. ``--summary`` only reads.

Measured: ladders that keep any rung whose true gain is not positive; plateaus called while a next round would truly gain over delta (the median of nine);
intervals of gains, and forecasts, that hold the true gain; the true pass rate of what ships, under the same budget, beside

- *sharpen run*: the ladder as that command climbs it with its defaults, by the same code (``AsRun``), asking ``choose`` nothing
- *three rounds*: SFT where there are demonstrations, then three rounds, the last ships; nothing is evaluated, so nothing is paid for it
- *first drop*: the same, until dev's point estimate falls; what was before it ships
- *distil*: the teacher where there is one and it is allowed, else SFT; ships
- *never stop*: the same as three rounds, until the budget is spent
- *hindsight*: the best of all orders of steps that truly gain, nothing evaluated: what no policy can know
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import worlds
from msgspec.structs import replace
from numpy.typing import NDArray
from worlds import Rung, Standing, World

from sharpen import advisor, ladder
from sharpen.advisor import AdvisorSettings
from sharpen.errors import Refused, Stopped
from sharpen.evaluation import EvaluationSettings
from sharpen.labels import BAR
from sharpen.ladder import TAUGHT, LadderSettings
from sharpen.methods.base import Attempt, Hints, Prompted
from sharpen.methods.rejection_sampling import Round, as_set
from sharpen.records import Decision, Gain, Goal, Measurements, Option, Purity, TaskResult, TeacherSeen, Teaching, Tried
from sharpen.sampling import SamplingSettings
from sharpen.stats import clopper_pearson, next_alpha, paired_gain, pass_interval, purity_bound
from sharpen.training.base import Training

Counts = NDArray[np.int64]

DELTA, ALPHA = 0.03, 0.05
TRIES = 9  # few-shot, SFT, distillation and six rounds share the alpha
LOOKS = (1, 2, 4)  # times the tries of a look, bought where a gain stays undecided, as evaluation.max_n does
LABELS = (29, 100)  # of what a round keeps: all that is asked for, then more while it is open
AS_RUNG: dict[str, Rung] = {"few-shot": "few-shot", "sft": "sft", "distillation": "distillation"}


def counted(world: World, passes: Counts) -> dict[str, Any]:
    """What is seen of how often training tasks are solved."""
    n, solved = world.tries, int((passes > 0).sum())
    return {
        "samples_per_task": n, "tasks_sampled": len(passes), "tasks_solved": solved, "tasks_mixed": int(((passes > 0) & (passes < n)).sum()),
        "pass_n": clopper_pearson(solved, len(passes)), "rewarded_in_part": int((passes == 0).sum()) if world.partial else 0,
    }  # fmt: skip


class Ladder:
    """One world's ladder, climbed as the advisor says."""

    def __init__(self, world: World, settings: AdvisorSettings) -> None:
        self.world, self.settings = world, settings
        self.rng = np.random.default_rng([world.seed, 3])
        self.left, self.model = world.budget, worlds.start(world)
        self.passed_on = 0.0
        self.row: dict[str, Any] = {"seed": world.seed, "kept": 0, "bad": 0, "kind": self.kind(), "gains": [], "forecasts": [], "steps": []}
        self.attempts = 0
        self.teacher_results: list[TaskResult] | None = None

    def kind(self) -> str:
        world = self.world
        return "exact" if world.exact else "yes to everything" if world.fpr == 1 else "hackable" if world.hack else "noisy"

    # ------------------------------------------------------------ measuring

    def evaluate(self, model: Standing, n: int | None = None, tasks: int | None = None) -> list[TaskResult]:
        """Judged by the verifier, as everything is."""
        n = n or self.world.evaluation
        p = worlds.seen(self.world, model, "dev")[:tasks]
        passes = self.rng.binomial(n, p)
        family = self.world.dev.family
        return [TaskResult(task=str(at), family=str(family[at]), samples=n, passes=int(k)) for at, k in enumerate(passes)]

    def sampled(self, tasks: int | None = None) -> dict[str, Any]:
        p = worlds.seen(self.world, self.model, "train")[:tasks]
        return counted(self.world, self.rng.binomial(self.world.tries, p))

    def purity(self, of: Standing | None = None) -> Purity:
        """Labels at random of what would be kept of this model's tries, or another's; a person is asked for 29, and for more while that is open."""
        of = of or self.model
        pure = worlds.purity(self.world, of)
        rows = max(int(worlds.seen(self.world, of, "train").sum() * min(2, self.world.tries)), 1)
        for n in LABELS:
            n = min(n, rows)
            good = int(self.rng.binomial(n, pure if pure == pure else 0.0))
            share = purity_bound([(good, n, rows)])
            outcome = "clears" if share.low >= BAR else "below" if purity_bound([(good, n, rows)], 0.95, "upper").high < BAR else "open"
            if outcome != "open":
                break
        return Purity(rows=rows, good=good, bad=n - good, unsure=0, share=share, bar=BAR, outcome=outcome, missing=0)

    def versus(self) -> Gain | None:
        """The teacher over what stands, on the dev tasks that it was tried on."""
        if self.teacher_results is None:
            return None
        return paired_gain(self.standing[: len(self.teacher_results)], self.teacher_results)

    def ask_teacher(self, tasks: int, n: int) -> None:
        self.teacher_results = self.evaluate(worlds.teacher(self.world), n, tasks)
        self.left -= len(self.teacher_results) * n * self.world.lesson

    def look_around(self) -> Measurements:
        """What nothing has to be sampled for."""
        world = self.world
        passing = int(self.rng.binomial(world.demos, min(1.0, float(worlds.seen(world, worlds.demonstrator(world), "train").mean()))))
        return Measurements(
            demonstrations=world.demos, demonstrations_passing=passing, demonstration_rate=clopper_pearson(passing, world.demos),
            verifier="verifier", verifier_exact=world.exact, gold_passes=True, noop_fails=self.kind() != "yes to everything",
        )  # fmt: skip

    def look(self) -> Measurements:
        """What ``sharpen advise`` would know for a fiftieth of the budget, over the base's evaluation."""
        world, few = self.world, self.settings.budget * self.world.budget
        self.standing = self.evaluate(self.model)
        self.left -= len(self.standing) * world.evaluation
        tasks = int(np.clip(few / 2 / world.tries, 2, len(world.train.base)))
        self.left -= tasks * world.tries
        teacher = None
        if world.taught is not None:
            self.ask_teacher(int(np.clip(few / 2 / world.lesson, 2, len(world.dev.base))), 1)
            teacher = TeacherSeen(name="teacher", terms=world.terms, gain=self.versus())
        return replace(
            self.look_around(),
            rate=pass_interval(self.standing),
            teacher=teacher,
            goal=Goal(value=world.goal),
            left=self.left,
            **self.sampled(tasks),
        )

    def may_sample_all(self, seen: Measurements) -> bool:
        """Whether there are tasks that were not sampled, and tries of all are paid for by what is left."""
        tasks = len(self.world.train.base)
        return (seen.tasks_sampled or 0) < tasks and tasks * self.world.tries <= self.left

    # ------------------------------------------------------------ climbing

    def climb(self) -> dict[str, Any]:
        seen, asked = self.look(), False
        while True:
            costs = {name: worlds.cost(self.world, AS_RUNG.get(name, "round")) for name in ("few-shot", "sft", *advisor.ROUNDS)}
            if self.world.taught is not None:
                costs["distillation"] = worlds.cost(self.world, "distillation")
            seen = replace(seen, costs=costs, left=self.left, goal_rate=seen.rate)
            advice = advisor.choose(seen, self.settings, DELTA)
            self._check(advice.options, seen)
            option = advice.recommendation
            self.row["steps"].append(f"{option.action}:{option.standing}")
            if option.action == "label":
                seen = replace(seen, purity=self.purity())
                if advisor.gate("rejection-sampling", seen, "").outcome == "refuse":
                    seen = replace(seen, purity=replace(seen.purity, outcome="below"))  # as far as anyone is asked to label
            elif option.standing == "open" and option.action == "distillation" and self.world.terms == "allowed" and not asked:
                asked = True
                if len(self.world.dev.base) * self.world.lesson <= self.left / 4:
                    self.ask_teacher(len(self.world.dev.base), 1)
                    seen = replace(seen, teacher=replace(seen.teacher, gain=self.versus()))
            elif option.action == "rejection-sampling" and option.standing == "open" and self.may_sample_all(seen):
                self.left -= len(self.world.train.base) * self.world.tries
                seen = replace(seen, **self.sampled())
            elif option.action in advisor.SUPERVISED and (option.standing == "advised" or option.action == "few-shot"):
                seen = self._try(seen, option.action)
            else:
                break  # a few-shot prompt that is open is tried: judging it is what would close it
        self.row["end"] = f"{advice.recommendation.action}:{advice.recommendation.standing}"
        self.row["called"] = advisor.ended(seen, self.settings, DELTA)
        self.row["left_gain"] = left_gain(self.world, self.model)
        self.row["truth"], self.row["spent"] = worlds.truth(self.world, self.model), 1 - self.left / self.world.budget
        self.row["path"] = "/".join(self.model.path)
        return self.row

    def _try(self, seen: Measurements, action: str) -> Measurements:
        rung = AS_RUNG.get(action, "round")
        if (price := worlds.cost(self.world, rung)) > self.left:
            return replace(seen, tried=(*seen.tried, Tried(method=action, outcome="undecided")))
        self.left -= price
        proposal = worlds.attempt(self.world, self.model, rung, self.attempts)
        self.attempts += 1
        dev, looks = self.evaluate(proposal), list[list[float]]()
        alpha = next_alpha(TRIES, self.passed_on, ALPHA)
        decision: Decision | None = None
        for before, look in zip((0, *LOOKS), LOOKS, strict=False):
            if before:
                price = len(dev) * self.world.evaluation * (look - before)
                short = [task for task in self.standing if task.samples < dev[0].samples * look // before]
                assert decision is not None
                if decision.outcome != "undecided" or self.left < price + len(short) * self.world.evaluation * (look - before):
                    break
                self.left -= price
                dev = _more(dev, self.evaluate(proposal, self.world.evaluation * (look - before)))
                if short:
                    self.standing = _more(self.standing, self.evaluate(self.model, dev[0].samples - short[0].samples))
                    self.left -= len(dev) * self.world.evaluation * (look - before)
            gain = paired_gain(self.standing, dev, 1 - alpha / len(LOOKS))
            decision = advisor.judge_gain(gain, DELTA)
            looks.append([gain.printed.low, gain.printed.high])
        assert decision is not None
        self.passed_on = alpha if decision.outcome == "keep" else 0.0
        true = worlds.truth(self.world, proposal) - worlds.truth(self.world, self.model)
        judged = worlds.apparent(self.world, proposal) - worlds.apparent(self.world, self.model)
        self.row["gains"].append([gain.printed.value, gain.printed.low, gain.printed.high, true, looks, judged])
        ways = advisor.variants(seen, self.settings)
        how = ways[0][0] if action == "retry" and ways else ""
        method = {"retry": "expert-iteration", "round": "expert-iteration"}.get(action, action)
        seen = replace(seen, tried=(*seen.tried, Tried(method=method, outcome=decision.outcome, gain=gain, variant=how)))
        if rung == "round":
            seen = replace(seen, **self.sampled())
        if decision.outcome == "keep":
            self.row["kept"] += 1
            self.row["bad"] += not true > 0
            self.model, self.standing, self.attempts = proposal, dev, 0
            teacher = replace(seen.teacher, gain=self.versus()) if seen.teacher is not None else None
            purity = None if not self.world.exact else seen.purity  # other rows would be kept from here
            seen = replace(seen, rate=pass_interval(dev), teacher=teacher, purity=purity)
        return seen

    def _check(self, options: Sequence[Option], seen: Measurements) -> None:
        """What was forecast, and what that one try would truly gain."""
        before = worlds.truth(self.world, self.model)
        for option in options:
            if option.gain is None or option.action == "few-shot":
                continue
            after = worlds.attempt(self.world, self.model, AS_RUNG.get(option.action, "round"), self.attempts)
            at = option.gain
            gain = worlds.truth(self.world, after) - before
            self.row["forecasts"].append([option.action, at.value, at.low, at.high, gain, advisor.headroom(option.action, seen)])


def _more(first: list[TaskResult], others: list[TaskResult]) -> list[TaskResult]:
    """A later look adds tries to the earlier ones."""
    return [replace(one, samples=one.samples + two.samples, passes=one.passes + two.passes) for one, two in zip(first, others, strict=True)]


def left_gain(world: World, model: Standing) -> float:
    """What the next round would truly gain: the median of nine."""
    after = [worlds.truth(world, worlds.attempt(world, model, "round", 100 + at)) for at in range(9)]
    return float(np.median(after)) - worlds.truth(world, model)


# ---------------------------------------------------------------- as sharpen run climbs


@dataclass(eq=False)
class Tries:
    """What stands made of the training tasks, in the place of a ``Pool``: ``passes`` of each, in the ``first`` tries and in all."""

    first: Counts
    passes: Counts


class Made:
    """A made-up ``Bench``: default settings with the world's numbers of tries, evaluation, and the meter, which stops what would not fit the budget."""

    training, hints, seed, banners = Training(), Hints(), 0, ()

    def __init__(self, of: Ladder) -> None:
        self.of, self.base = of, of.model
        self.evaluation = replace(EvaluationSettings(), n=of.world.evaluation)
        self.sampling = replace(SamplingSettings(), n=of.world.tries)
        dev = SimpleNamespace(tasks=[SimpleNamespace(family=family) for family in of.world.dev.family.tolist()])
        self.tasks = SimpleNamespace(split=lambda _: dev)
        self._devs: dict[str, list[TaskResult]] = {}

    def say(self, _: str) -> None: ...

    def permitted(self) -> None: ...

    def pay(self, price: float) -> None:
        if price > self.of.left:
            raise Stopped("the budget is spent")
        self.of.left -= price

    def evaluate(self, name: str, agent: Prompted, _: str, n: int | None = None) -> SimpleNamespace:
        """Tries are made once; a later look adds to them."""
        n, there = n or self.evaluation.n, self._devs.get(name, [])
        if (more := n - (there[0].samples if there else 0)) > 0:
            self.pay(len(self.of.world.dev.base) * more)
            made = self.of.evaluate(standing_of(agent), more)
            self._devs[name] = _more(there, made) if there else made
        return SimpleNamespace(tasks=self._devs[name])


def standing_of(agent: Any) -> Standing:
    """What an agent is in its world: the model, or that with its examples where it is shown some."""
    return agent.shots[0] if agent.shots else agent.model


class AsRun(ladder.Ladder):
    """The ladder of ``sharpen run`` in a made-up world: rungs, retries, alphas and decisions are that class's own; only tries, training and labels are made up.

    Every way to make a round again has a plain round's effect, with luck of its own; ``more-samples`` that of twice the tries.
    """

    def __init__(self, world: World, settings: LadderSettings | None = None) -> None:
        self.of, self.made = Ladder(world, AdvisorSettings()), Counter[tuple[Standing, str]]()
        self.at: Any = Made(self.of)
        taught = world.taught is not None and world.terms == "allowed"  # else nobody would name it
        super().__init__(self.at, settings or LadderSettings(rungs=TAUGHT if taught else LadderSettings().rungs))

    def outcome(self) -> dict[str, Any]:
        """Climbs, and gives what came of it."""
        world, stopped = self.of.world, False
        try:
            self.climb()
        except Stopped:  # what stands ships, and no end is called
            stopped = True
        kept = [standing_of(rung.agent) for rung in self.rungs if rung.decision.outcome in ("baseline", "keep") and not rung.control]
        truths = [worlds.truth(world, model) for model in kept]
        return {
            "kept": len(kept) - 1, "bad": sum(after <= before for before, after in pairwise(truths)), "truth": truths[-1],
            "called": "" if stopped or self.waiting else advisor.ended(self.seen, self.advice, self.settings.delta),
            "left_gain": left_gain(world, kept[-1]), "stopped": stopped, "waiting": self.waiting,
            "rungs": [[rung.name.removeprefix("rungs/"), rung.decision.outcome] for rung in self.rungs],
        }  # fmt: skip

    def look(self) -> Measurements:
        return self.of.look_around()

    def _do(self, method: advisor.Method, name: str, how: Round) -> Attempt:
        """In the order of the ladder's own: sample, measure, ask whether anything is there to keep, pass the gate, train nothing twice."""
        world, standing, bench = self.of.world, self.standing.agent, self.bench
        assert standing is not None
        if method in ("few-shot", "sft"):
            self.at.pay(worlds.cost(world, AS_RUNG[method], judged=False))
            after: Any = self._attempt(world, standing, AS_RUNG[method])
            return Attempt(Prompted(standing.model, (after,)) if method == "few-shot" else Prompted(after))
        if method == "distillation":
            return self._taught(name, standing)
        found: Any = self._gather(how, standing)
        if how.sampling.temperature == bench.sampling.temperature:
            self._had = found
            assert self.standing.dev is not None
            self.seen = replace(self._succeeded(found), rate=pass_interval(self.standing.dev.tasks, 1, 0.95, bench.seed))
        decision = advisor.after_sampling(method, self._succeeded(found), hinted=how.hints)
        if decision.outcome == "refuse":
            raise Refused(decision.reasons[0])
        self._gate(method, name, standing_of(standing))
        trains: Any = (how.negatives, how.start, frozenset([found, how.hints]))
        if trains in self._made:
            raise Refused("the same tries would train the same model again")
        self._made.add(trains)
        control = method == "rejection-sampling" and self.settings.control and dataclasses.replace(how, had=None) == as_set(bench)
        self.at.pay(len(world.train.base) * min(2, world.tries) * world.row * (1 + control))
        after = self._attempt(dataclasses.replace(world, tries=how.sampling.n), standing, "round")
        return Attempt(Prompted(after), control=Attempt(standing) if control else None)

    def _taught(self, name: str, standing: Prompted) -> Attempt:
        """The teacher is measured as the student is, asked for tries where it has something to copy, and these pass the gate."""
        world, before = self.of.world, self.standing.dev
        assert before is not None
        teacher, n = worlds.teacher(world), before.tasks[0].samples
        self.at.pay(len(before.tasks) * n * world.lesson)
        theirs = self.of.evaluate(teacher, n)
        lacks = [there for here, there in zip(before.tasks, theirs, strict=True) if not here.passes]
        teaching = Teaching(
            teacher="teacher", teacher_rate=pass_interval(theirs), student_rate=pass_interval(before.tasks), gap=paired_gain(before.tasks, theirs),
            student_tries=n, lacks=len(lacks), solves=sum(there.passes > 0 for there in lacks), tries=len(theirs) * n,
        )  # fmt: skip
        decision = advisor.worth_copying(replace(self.seen, teaching=teaching))
        if decision.outcome == "refuse":
            raise Refused(decision.reasons[0])
        self._gate("distillation", name, teacher)
        self.at.pay(worlds.cost(world, "distillation", judged=False))
        control = self.settings.control
        self.at.pay(worlds.cost(world, "round", judged=False) * control)
        return Attempt(Prompted(self._attempt(world, standing, "distillation")), control=Attempt(standing) if control else None)

    def _attempt(self, world: World, standing: Prompted, rung: Rung) -> Standing:
        before = standing_of(standing)
        self.made[before, rung] += 1
        return worlds.attempt(world, before, rung, self.made[before, rung] - 1)

    def _gather(self, how: Round, standing: Prompted) -> Tries:
        world, had = self.of.world, cast(Tries | None, how.had)
        self.of.model = standing_of(standing)
        if had is None:
            had = Tries(first := self._sample(world.tries), first)
        if (more := how.sampling.n - world.tries) > 0:
            had = Tries(had.first, had.passes + self._sample(more))
        if how.hints:
            self.at.pay(int((had.passes == 0).sum()) * self.bench.hints.n)
        return had

    def _sample(self, n: int) -> Counts:
        p = worlds.seen(self.of.world, self.of.model, "train")
        self.at.pay(len(p) * n)
        return self.of.rng.binomial(n, p)

    def _succeeded(self, pool: Any) -> Measurements:
        later = int(((pool.first == 0) & (pool.passes > 0)).sum())
        return replace(self.seen, solved_later=later, **counted(self.of.world, pool.first))

    def _gate(self, method: advisor.Method, name: str, found: Any) -> None:
        seen = self.seen if self.seen.verifier_exact else replace(self.seen, purity=self.of.purity(found))
        decision = advisor.gate(method, seen, "")
        if decision.outcome == "refuse":
            assert seen.purity is not None
            self.waiting = self.waiting or seen.purity.outcome == "open"
            raise Refused(decision.reasons[0])

    def _control(self, real: ladder.Rung, attempt: Attempt) -> None:
        assert real.dev is not None
        self.at.pay(sum(task.samples for task in real.dev.tasks))

    def _watch(self, before: ladder.Rung, rung: ladder.Rung, forgotten: Gain | None) -> None:
        """Shown, and by default nothing is decided by it."""

    def _habits(self, rung: ladder.Rung, attempt: Attempt) -> None: ...

    def _filtered(self, before: ladder.Rung, rung: ladder.Rung, attempt: Attempt) -> None: ...

    def _write(self, rung: ladder.Rung) -> None: ...

    def _open_test(self) -> None: ...


def simple(world: World) -> dict[str, float]:
    """The true pass rate that each simple rule ends with."""

    def steps(first: Sequence[Rung], most: float, *, judged: bool) -> float:
        rng = np.random.default_rng([world.seed, 4])
        model, left = worlds.start(world), world.budget

        def dev(one: Standing) -> float:
            return float(rng.binomial(world.evaluation, worlds.seen(world, one, "dev")).mean())

        best, at = model, dev(model) if judged else 0.0
        left -= len(world.dev.base) * world.evaluation if judged else 0.0
        plan = [*first]
        made = 0
        while True:
            rung: Rung = plan.pop(0) if plan else "round"
            made += rung == "round"
            left -= worlds.cost(world, rung, judged=judged)
            if left < 0 or made > most:
                return worlds.truth(world, best)
            model = worlds.attempt(world, best, rung)
            now = dev(model) if judged else 0.0
            if judged and now < at:
                return worlds.truth(world, best)
            best, at = model, now

    demos: list[Rung] = ["sft"] if world.demos else []
    distil: list[Rung] = ["distillation"] if world.taught is not None and world.terms == "allowed" else demos
    return {
        "base": worlds.truth(world, worlds.start(world)),
        "three rounds": steps(demos, 3, judged=False),
        "first drop": steps(demos, math.inf, judged=True),
        "distil": steps(distil, 0, judged=False),
        "never stop": steps(demos, 40, judged=False),
    }


def hindsight(world: World) -> float:
    """The best true pass rate that steps which truly gain can reach, in any order, within the budget, nothing evaluated."""
    once: list[Rung] = ["few-shot"] + (["sft"] if world.demos else [])
    once += ["distillation"] if world.taught is not None and world.terms == "allowed" else []
    best = 0.0

    def go(model: Standing, left: float, rounds: int) -> None:
        nonlocal best
        at = worlds.truth(world, model)
        best = max(best, at)
        for rung in (*once, "round"):
            price = worlds.cost(world, rung, judged=False)
            if price > left or (rung in model.path and rung != "round") or rounds > 6 or model.prompt:
                continue
            for number in (0, 1):
                after = worlds.attempt(world, model, rung, number)
                if worlds.truth(world, after) > at + 1e-3:
                    go(after, left - price * (number + 1), rounds + (rung == "round"))
                    break

    go(worlds.start(world), world.budget, 0)
    return best


def run(seed: int) -> dict[str, Any]:
    world = worlds.draw(seed)
    started = time.process_time()
    row = Ladder(world, AdvisorSettings()).climb()
    row["cpu_s"] = time.process_time() - started
    return row | {
        "families": len(set(world.dev.family.tolist())),
        "run": (run_ := AsRun(world).outcome()),
        "rules": simple(world) | {"sharpen run": run_["truth"], "hindsight": hindsight(world)},
        "teacher": world.taught is not None and world.terms == "allowed",
    }


# ---------------------------------------------------------------- what came of it


def ci(hits: int, n: int) -> str:
    at = clopper_pearson(hits, n)
    return f"{at.value:.1%} [{at.low:.1%}, {at.high:.1%}] ({hits} of {n})"


def _holds(low: float, high: float, true: float) -> bool:
    return low - 1e-9 <= true <= high + 1e-9


def summary(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"{len(rows)} worlds, {sum(row['kept'] for row in rows)} rungs kept, {sum(row['cpu_s'] for row in rows) / len(rows):.2f} CPU seconds a ladder"
    yield f"ladders that keep a rung whose true gain is not positive: {ci(sum(row['bad'] > 0 for row in rows), len(rows))}"
    for kind in ("exact", "noisy", "hackable", "yes to everything"):
        of = [row for row in rows if row["kind"] == kind]
        yield f"  where the verifier is {kind}: {ci(sum(row['bad'] > 0 for row in of), len(of))}"
    called = [row for row in rows if row["called"] == "plateau"]
    yield f"plateaus called while the next round would gain over {DELTA:.0%}: {ci(sum(row['left_gain'] > DELTA for row in called), len(called))}"
    weak = [row for row in rows if row["called"] == "undecided"]
    yield f"  called undecided instead: {len(weak)}, of which {sum(row['left_gain'] > DELTA for row in weak)} had that left"
    yield from as_run([row | row["run"] for row in rows])
    for says, wanted in (("exact verifiers", lambda row: row["kind"] == "exact"), ("others", lambda row: row["kind"] != "exact")):
        gains = [gain for row in rows if wanted(row) for gain in row["gains"] if gain[1] is not None]
        first, last = sum(_holds(*gain[4][0], gain[3]) for gain in gains), sum(_holds(*gain[1:4]) for gain in gains)
        yield f"95 % intervals of gains that hold the true gain, {says}, at the first look: {ci(first, len(gains))}"
        yield f"  as printed in the end, where it was looked again while undecided: {ci(last, len(gains))}"
        judged = sum(_holds(*gain[1:3], gain[5]) for gain in gains)
        yield f"  as printed in the end, that hold the gain by the verifier's word: {ci(judged, len(gains))}"
    for action in ("all", *advisor.FITTED):
        told = [one for row in rows for one in row["forecasts"] if action in ("all", one[0])]
        wide = np.mean([one[3] - one[2] for one in told]) if told else math.nan
        held = ci(sum(_holds(*one[2:5]) for one in told), len(told))
        yield f"forecasts that hold the true gain, {action}: {held}, mean width {wide:.2f}"
    groups: dict[str, Callable[[dict[str, Any]], bool]] = {
        "all": lambda row: True, "exact verifier": lambda row: row["kind"] == "exact", "not exact": lambda row: row["kind"] != "exact",
        "a teacher that is allowed": lambda row: row["teacher"], "under 40 dev families": lambda row: row["families"] < 40,
        "150 dev families or more": lambda row: row["families"] >= 150,
    }  # fmt: skip
    for says, wanted in groups.items():
        of = [row for row in rows if wanted(row)]
        yield f"true pass rate of what ships, {says} ({len(of)} worlds), regret to hindsight, and share of worlds under the base by over 1 point:"
        for name in ("advisor", "sharpen run", "three rounds", "first drop", "distil", "never stop", "base", "hindsight"):
            got = np.array([row["truth"] if name == "advisor" else row["rules"][name] for row in of])
            best, base = np.array([row["rules"]["hindsight"] for row in of]), np.array([row["rules"]["base"] for row in of])
            ours = np.array([row["truth"] for row in of])
            beside, error = (got - ours).mean(), 1.96 * (got - ours).std() / math.sqrt(len(of))
            yield (
                f"  {name:13} {got.mean():.3f}  regret {(best - got).mean():.3f}  over the advisor {beside:+.3f} ± {error:.3f}"
                f"  under the base {np.mean(got < base - 0.01):.1%}"
            )
    ends: dict[str, int] = {}
    for row in rows:
        ends[row["end"]] = ends.get(row["end"], 0) + 1
    yield "ends: " + ", ".join(f"{name} {many}" for name, many in sorted(ends.items(), key=lambda one: -one[1]))


def as_run(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The errors of the ladder as ``sharpen run`` climbs it."""
    settings = LadderSettings()
    retried = [row for row in rows if any("-retry-" in name for name, _ in row["rungs"])]
    ended = Counter("the budget" if row["stopped"] else "labels that are missing" if row["waiting"] else "the last rung" for row in rows)
    climbs = f"{', '.join(settings.rungs)}, and distillation where there is a teacher, at most {settings.retries} retries"
    yield f"sharpen run ({climbs}), {sum(row['kept'] for row in rows)} rungs kept:"
    yield f"  ladders that keep a rung whose true gain is not positive: {ci(sum(row['bad'] > 0 for row in rows), len(rows))}"
    for kind in ("exact", "noisy", "hackable", "yes to everything"):
        of = [row for row in rows if row["kind"] == kind]
        yield f"    where the verifier is {kind}: {ci(sum(row['bad'] > 0 for row in of), len(of))}"
    for says, left in (("plateaus called", "plateau"), ("self-training called undecided instead", "undecided")):
        called = [row for row in rows if row["called"] == left]
        yield f"  {says} while the next round would gain over {DELTA:.0%}: {ci(sum(row['left_gain'] > DELTA for row in called), len(called))}"
    yield f"  a round is made again in {len(retried)} ladders; they end by " + ", ".join(
        f"{why} ({many})" for why, many in ended.most_common()
    )
    yield (
        "  Not modelled: what hints, negatives, another temperature and going on from what stands do other than a plain round with luck of its own; "
        "which tasks have a solution to show (all do); what a round costs in diversity (collapse is only shown by default, and decides nothing); "
        "the control's own effect (it is paid for). Labels are given when they are asked for, as to the advisor. Evaluation looks once (max_n: 0)."
    )


def fit(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """``advisor.FITTED`` that hold on these worlds: the slope through 0 with the least squared error, and the quantiles of what is left."""
    shares = {name: one.share for name, one in advisor.FITTED.items()}
    for action in advisor.FITTED:
        told = [one for row in rows for one in row["forecasts"] if one[0] == action and abs(one[5]) >= 0]
        if len(told) < 40:
            yield f"{action}: only {len(told)}, too few; it has {shares[action]}"
            continue
        h, true = np.array([one[5] for one in told]), np.array([one[4] for one in told])
        share = float(np.clip(h @ true / (h @ h), 0, 1))
        low, high = np.quantile((true - share * h) / (np.abs(h) + advisor.FLOOR), [0.025, 0.975])
        yield f'"{action}": Forecast(share={share:.3g}, low={low:.3g}, high={high:.3g}),  # of {len(told)}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=2000)
    parser.add_argument("--from", type=int, default=None, dest="start", help="first seed (default: the first fresh one, with --fit 0)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("advisor.jsonl"))
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    start = arguments.start if arguments.start is not None else 0 if arguments.fit else worlds.FRESH
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    if not arguments.summary:
        there = {row["seed"] for row in rows}
        seeds = [seed for seed in range(start, start + arguments.worlds) if seed not in there]
        with arguments.out.open("ab") as file, ProcessPoolExecutor(arguments.processes) as pool:
            made = map(run, seeds) if arguments.processes == 1 else pool.map(run, seeds, chunksize=8)
            for row in made:
                file.write(msgspec.json.encode(row) + b"\n")
                file.flush()
                rows.append(msgspec.json.decode(msgspec.json.encode(row)))
    for line in fit(rows) if arguments.fit else summary(rows):
        print(line)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
