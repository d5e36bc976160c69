"""The ladder, written flat: no framework, one screen or two. What `sharpen run` does, without resume, control or page.

python examples/loop.py                                # SmolLM2-135M on small text games, about 10 minutes on 2 cores
python examples/loop.py --model runs/x/rungs/002-sft/model --games 20
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from functools import partial

from sharpen import Model, SamplingSettings, Session, Training, load_model, load_tasks
from sharpen.agents.recorded import replay
from sharpen.api import Candidate
from sharpen.chat.load import load_template
from sharpen.loop import run
from sharpen.records import Selection, TaskResult, Trajectory
from sharpen.selection import build_rows
from sharpen.stats import decide, paired_gain, pass_interval
from sharpen.tasks.base import Splits, TaskSet
from sharpen.tasks.textworld import TextWorld
from sharpen.training.load import trainer_for
from sharpen.verifiers.run import judge

N, TRIES, CAP, DELTA = 4, 4, 2, 0.03


def measure(session: Session, model: Model, tasks: TaskSet) -> list[TaskResult]:
    """N tries of every task, judged."""
    results = {task.key: [0, 0] for task in tasks}
    family = {task.key: task.task.family for task in tasks}
    for candidate in session.sample_many(model, tasks, N):
        verdict = session.verify(candidate)
        results[candidate.bound.key][0] += verdict.outcome == "pass"
        results[candidate.bound.key][1] += verdict.outcome == "error"
    return [TaskResult(task=key, family=family[key], samples=N, passes=p, errors=e) for key, (p, e) in results.items()]


def demonstrations(tasks: TaskSet) -> list[Trajectory]:
    """The expert's walkthroughs, replayed; those that do not win are left out."""
    made = []
    for bound in tasks:
        actions = tasks.environment.expert(bound.task)
        if actions is not None and tasks.verifier is not None:
            trajectory = run(replay(bound.task, tasks.environment, actions))
            if judge(bound.task, trajectory, tasks.verifier):
                made.append(trajectory)
    return made


def keep(session: Session, candidates: Sequence[Candidate], seed: int) -> list[Trajectory]:
    """Passes only, no two with the same actions, at most CAP a task."""
    kept: dict[tuple[str, tuple[str, ...]], Trajectory] = {}
    shuffled = sorted(candidates, key=lambda c: (c.bound.key, c.trajectory.key.index))
    random.Random(seed).shuffle(shuffled)
    for candidate in shuffled:
        trajectory, task = candidate.trajectory, candidate.bound.key
        if session.verify(candidate) and sum(key[0] == task for key in kept) < CAP:
            kept.setdefault((task, trajectory.actions), trajectory)
    return list(kept.values())


def train(session: Session, base: Model, taught: Sequence[Trajectory], own: Sequence[Trajectory], name: str) -> Model:
    """From the base, over demonstrations and survivors."""
    session.close()  # the engine's memory is the trainer's now
    pairs = [*(("demonstration", t) for t in taught), *(("sampled", t) for t in own)]
    nothing = Selection(kept=tuple(t.key for _, t in pairs), left_out=(), counts={})
    rows, _ = build_rows(nothing, pairs, load_template(base), session.training.max_length)
    model, report = trainer_for(base)(rows, base, session.training, session.folder / name)
    print(f"  trained on {len(rows)} rows, {report.trained_tokens} tokens with a label, {report.seconds:.0f} s")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--games", type=int, default=40, help="families in each split")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    games = given.games
    tasks = load_tasks(TextWorld(splits=Splits(demo=games, train=games, dev=games, test=games), seed=given.seed, rooms=1, objects=4))
    base = load_model(given.model)
    session = Session(sampling=SamplingSettings(n=TRIES, max_tokens=16, temperature=0.8), training=Training(epochs=3), seed=given.seed)
    score = partial(measure, session, tasks=tasks.split("dev"))

    standing, results = base, score(base)
    say("base", results)
    taught, own = demonstrations(tasks.split("demo")), list[Trajectory]()
    for rung in range(given.rounds + 1):
        fresh: list[Trajectory] = []
        if rung > 0:  # rung 0 imitates the demonstrations; every later one its own best
            fresh = keep(session, list(session.sample_many(standing, tasks.split("train"))), given.seed)
        proposal = train(session, base, taught, [*own, *fresh], f"rung-{rung}")
        after = score(proposal)
        gain = paired_gain(results, after)
        say("sft" if rung == 0 else f"round {rung}", after)
        outcome = decide(gain, DELTA)
        print(f"  gain {gain.printed.value:+.1%} [{gain.printed.low:+.1%}, {gain.printed.high:+.1%}]: {outcome}")
        if outcome != "keep":
            break
        standing, results, own = proposal, after, [*own, *fresh]
    say("test, what ships", measure(session, standing, tasks.split("test")))
    session.close()


def say(name: str, results: list[TaskResult]) -> None:
    one, many = pass_interval(results, 1), pass_interval(results, N)
    print(f"{name}: pass@1 {one.value:.1%} [{one.low:.1%}, {one.high:.1%}], pass@{N} {many.value:.1%}, n {one.n} families", flush=True)


if __name__ == "__main__":
    main()
