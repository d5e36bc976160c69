"""The adaptive budget: it keeps to its terms, decides on whole waves in launch order, and neither a kill nor a new verifier makes it pay twice."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpen.agents.base import PolicyAgent
from sharpen.budget import Adaptive, Terms, Try, Wave, next_wave, terms
from sharpen.cli import main
from sharpen.environments.single_turn import SingleTurn
from sharpen.errors import RunError, SettingsError
from sharpen.policies.base import Conversation, Sampling, Turn
from sharpen.policies.scripted import ScriptedPolicy
from sharpen.records import Message, Task, Trajectory, Verdict
from sharpen.report.read import read_run
from sharpen.run import climb
from sharpen.sampling import WAVES, Goal, Pool, SamplingSettings, Waves, fill_adaptively
from sharpen.selection import SelectionSettings, ignore_verdicts, select
from sharpen.settings import load_settings
from sharpen.store.files import read_json
from sharpen.store.segments import Segments

quick = settings(max_examples=25, deadline=None)
Made = dict[str, list[Try]]


def world(rates: list[float], n: int, seed: int = 0, ways: int = 3) -> Made:
    """``n`` tries of a task for each rate, with tokens between 1 and 40."""
    rng = random.Random(seed)
    return {
        f"t{at}": [Try("pass" if rng.random() < rate else "fail", rng.randrange(ways), rng.randint(1, 40)) for _ in range(n)]
        for at, rate in enumerate(rates)
    }


def spend(pool: Made, budget: Adaptive, limits: Terms, seed: int = 0) -> tuple[Made, list[Wave]]:
    """Play ``pool`` out to the end."""
    made: Made = {task: [] for task in pool}
    waves = []
    while True:
        waves.append(next_wave(made, budget, limits, seed))
        if waves[-1].ended:
            return made, waves
        assert waves[-1].tasks
        for task in waves[-1].tasks:
            made[task].append(pool[task][len(made[task])])


def distinct(tries: list[Try]) -> int:
    return len({one.solution for one in tries if one.outcome == "pass"})


# ---------------------------------------------------------------- terms


@given(
    rates=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    first=st.integers(1, 4),
    wave=st.integers(1, 40),
    most=st.integers(4, 30),
    cap=st.none() | st.integers(1, 4),
    tries=st.none() | st.integers(48, 200),
    tokens=st.none() | st.integers(1920, 6000),
    seed=st.integers(0, 5),
)
@quick
def test_no_term_is_ever_exceeded_and_no_finished_task_gets_a_try(
    rates: list[float], first: int, wave: int, most: int, cap: int | None, tries: int | None, tokens: int | None, seed: int
) -> None:
    budget = Adaptive(first=first, wave=wave, max_tries=most)
    limits = Terms(tries=tries, tokens=tokens, cap=cap, most=40)
    pool = world(rates, most, seed)
    made: Made = {task: [] for task in pool}
    before: Made = {}
    while not (planned := next_wave(made, budget, limits, seed)).ended:
        assert planned == next_wave(made, budget, limits, seed)
        assert len(planned.tasks) <= wave or not any(made.values())
        for task in planned.tasks:
            if before:
                assert cap is None or distinct(before[task]) < cap
            made[task].append(pool[task][len(made[task])])
        before = {task: list(own) for task, own in made.items()}
    assert all(first <= len(tries_) <= most for tries_ in made.values())
    assert tries is None or sum(map(len, made.values())) <= tries
    assert tokens is None or sum(one.tokens for tries_ in made.values() for one in tries_) <= tokens


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10), st.integers(0, 20))
@quick
def test_a_larger_budget_makes_the_same_tries_first(rates: list[float], seed: int) -> None:
    budget, pool = Adaptive(first=2, wave=7, max_tries=30), world(rates, 30, seed)
    small, _ = spend(pool, budget, Terms(tries=3 * len(rates), cap=2))
    large, _ = spend(pool, budget, Terms(tries=5 * len(rates), cap=2))
    assert all(len(small[task]) <= len(large[task]) for task in pool)


def test_settings_that_contradict_each_other_are_refused(scripted: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="first is 9, over max_tries, 8"):
        Adaptive(first=9, max_tries=8)
    with pytest.raises(SettingsError, match=r"budget.first is 4, but n: 2"):
        SamplingSettings(n=2, budget=Adaptive(first=4))
    for flag, why in {
        "--sampling.budget.cap 0": "sampling.budget.cap",
        "--sampling.budget.first 5": "budget.first is 5, but n: 4",
        "--sampling.budget.hopeless 1.5": "sampling.budget.hopeless",
        "--sampling.budget.wve 5": "did you mean 'wave'",
        "--sampling.budget.tokens 100": "may take 5120 tokens (32 each at worst), but sampling.budget.tokens is 100",
    }.items():
        words = ["sample", str(scripted), str(tmp_path / "w"), "--sampling.budget", "adaptive", *flag.split()]
        assert main(words) == 2
        error = capsys.readouterr().err
        assert why in error and error.count("\n") == 1, error
    assert not (tmp_path / "w" / "trajectories").exists()
    with pytest.raises(SettingsError, match="may take 5120 tokens"):  # before the ladder pays for its base
        climb(load_settings(scripted, {"sampling.budget": "adaptive", "sampling.budget.tokens": "100"}), tmp_path / "runs")
    assert not (tmp_path / "runs" / "ladder" / "rungs").exists()


def test_terms_count_the_tries_that_uniform_would_make() -> None:
    assert terms(Adaptive(), 8, 10, 2, 80) == Terms(tries=80, cap=2, most=80)
    assert terms(Adaptive(tokens=9000, cap=5), 8, 10, 2, 80) == Terms(tokens=9000, cap=5, most=80)


# ---------------------------------------------------------------- what is planned


def test_everything_solved_at_once_ends_at_once() -> None:
    made, waves = spend(world([1.0] * 5, 9, ways=1000), Adaptive(first=2), Terms(tries=999, cap=2))
    assert {len(tries) for tries in made.values()} == {2} and len(waves) == 2
    assert "every task has its successes" in waves[-1].ended and waves[-1].set_aside == ()


def test_the_hopeless_are_set_aside_with_their_bound() -> None:
    made, waves = spend(world([0.0] * 3, 100), Adaptive(first=4, wave=16, max_tries=90, hopeless=0.05), Terms(tries=999, cap=2))
    for item in waves[-1].set_aside:
        assert item.tries == len(made[item.task]) >= 59  # the first n at which 1 - 0.05^(1/n) is under 0.05; whole waves may pass it
        assert item.bound == pytest.approx(1 - 0.05 ** (1 / item.tries)) and item.bound < 0.05
    assert [item.task for item in waves[-1].set_aside] == ["t0", "t1", "t2"]


def test_errors_bring_nothing_and_prove_nothing() -> None:
    pool: Made = {"broken": [Try("error", (), 0)] * 80, "fine": [Try("fail", (), 5)] * 80}
    made, waves = spend(pool, Adaptive(first=2, wave=8), Terms(tries=200, cap=2))
    assert len(made["broken"]) == 64  # max_tries
    assert [item.task for item in waves[-1].set_aside] == ["fine"]


def test_no_tasks_and_one_task() -> None:
    assert next_wave({}, Adaptive(), Terms(), 0).ended
    made, _ = spend(world([0.5], 64), Adaptive(wave=5), Terms(tries=40, cap=3))
    assert distinct(made["t0"]) >= 3 or len(made["t0"]) == 40


def test_tries_go_where_a_token_brings_most() -> None:
    def state(tokens: int, *outcomes: str) -> list[Try]:
        return [Try(outcome, at, tokens) for at, outcome in enumerate(outcomes)]  # type: ignore[arg-type]

    made = {
        "likely": state(10, "pass", "fail", "fail", "fail"),
        "rare": state(10, "fail", "fail", "fail", "fail"),
        "dear": state(40, "pass", "fail", "fail", "fail"),
        "done": state(10, "pass", "pass", "fail", "fail"),
    }
    ranked = list(dict.fromkeys(next_wave(made, Adaptive(wave=64), Terms(cap=2), 0).tasks))
    assert ranked[0] == "likely" and set(ranked) == {"likely", "rare", "dear"}
    same = {task: [Try("pass", 0, 10)] * 6 + [Try("fail", 0, 10)] * 6 for task in ("a", "b")} | {
        task: [Try("pass", at, 10) for at in range(6)] + [Try("fail", 0, 10)] * 6 for task in ("c", "d")
    }
    tasks = Counter(next_wave(same, Adaptive(wave=8), Terms(cap=9), 0).tasks)
    assert tasks["c"] > tasks["a"]  # as many passes, but always the same way
    known = {"c": set(range(6)), "d": set(range(6))}
    assert set(next_wave(same, Adaptive(wave=8), Terms(cap=6), 0).tasks) == {"a", "b"}  # the others have their six
    assert {"c", "d"} <= set(next_wave(same, Adaptive(wave=64), Terms(cap=6), 0, known).tasks)  # but these six train already


def test_where_each_task_has_one_solution_a_wave_goes_to_those_without_it() -> None:
    """Once the second try of a wave was doubted as if the first had passed, and waves filled up with tries that could bring nothing."""
    solved = {f"solved {at}": [Try("pass", 0, 10)] * 2 + [Try("fail", 0, 10)] * 2 for at in range(10)}
    unsolved = {f"unsolved {at}": [Try("fail", 0, 10)] * 4 for at in range(10)}
    assert set(next_wave(solved | unsolved, Adaptive(wave=20), Terms(cap=2), 0).tasks) == set(unsolved)


def test_equal_tasks_are_treated_equally() -> None:
    made = {f"t{at}": [Try("pass", 0, 10), Try("fail", 0, 10)] for at in range(6)}
    for seed in range(4):
        tasks = Counter(next_wave(made, Adaptive(wave=12, first=2), Terms(cap=5), seed).tasks)
        assert set(tasks.values()) == {2}
    heads = {next_wave(made, Adaptive(wave=1, first=2), Terms(cap=5), seed).tasks for seed in range(40)}
    assert len(heads) == 6  # what ties break by is drawn


def test_rates_of_the_first_wave_are_unbiased_and_those_of_all_tries_are_not() -> None:
    rates = list(np.random.default_rng(0).beta(0.7, 1.3, 12))
    first, every = [], []
    for seed in range(50):
        made, _ = spend(world(rates, 40, seed, ways=1000), Adaptive(first=2, wave=24, max_tries=40), Terms(tries=96, cap=1), seed)
        first.append(np.mean([sum(one.outcome == "pass" for one in tries[:2]) / 2 for tries in made.values()]))
        every.append(np.mean([sum(one.outcome == "pass" for one in tries) / len(tries) for tries in made.values()]))
    error = float(np.std(first)) / math.sqrt(len(first))
    assert abs(np.mean(first) - np.mean(rates)) < 3 * error
    assert np.mean(every) - np.mean(rates) > 5 * error  # stopping at a success flatters: METHODS


# ---------------------------------------------------------------- on disk

TASKS = [Task(key=f"t{i}", family=f"t{i}", prompt=(Message(role="user", content=f"Calculate {i} + 1."),)) for i in range(10)]
BUDGET, LIMITS = Adaptive(first=2, wave=6, max_tries=12), Terms(tries=50, cap=2)


class Exact:
    """Passes the sum; ``lenient`` also what is one over."""

    exact = True

    def __init__(self, lenient: bool = False) -> None:
        self.lenient, self.name = lenient, "lenient" if lenient else "sum"

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        over = int(trajectory.messages[-1].content) - int(task.key[1:])
        return Verdict(key=trajectory.key, outcome="pass" if over == 1 or (self.lenient and over == 2) else "fail", verifier=self.name)


class Counting:
    """Right in a share of tries that differs by task; counts its calls, and brings everything down after ``lasts`` of them."""

    name, gives_token_ids = "counting", True

    def __init__(self, lasts: int = 10**9) -> None:
        self.calls, self.lasts = 0, lasts
        self.well = ScriptedPolicy(self.answer)

    @staticmethod
    def answer(conversation: Conversation, rng: random.Random) -> str:
        number = int(conversation.messages[-1].content.split()[1])
        return str(number + (1 if rng.random() < number / 12 else 2))

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        self.calls += 1
        if self.calls > self.lasts:
            raise RuntimeError("killed")
        return await self.well.complete(conversation, sampling)

    async def close(self) -> None: ...


def sample(folder: Path, policy: Counting, *, verifier: Exact | None = None, budget: Adaptive = BUDGET, limits: Terms = LIMITS,
           goal: Goal = Goal(cap=2, dedup=False)) -> Pool:  # fmt: skip  # noqa: B008
    agent = PolicyAgent("a", policy, "m", SingleTurn(), Sampling(max_tokens=16))
    trajectories, verdicts = Segments(folder / "t", Trajectory), Segments(folder / "v", Verdict)
    try:
        return asyncio.run(
            fill_adaptively(
                agent, TASKS, budget, limits, goal, 1, verifier or Exact(), trajectories, verdicts, folder / WAVES, concurrency=4
            )
        )
    finally:
        trajectories.close()
        verdicts.close()


def test_killed_anywhere_it_ends_with_the_same_tries_and_pays_for_none_twice(tmp_path: Path) -> None:
    calm = sample(tmp_path / "calm", Counting())
    assert calm.waves is not None and calm.waves.ended and len(calm.waves.waves) >= 4
    boundaries = np.cumsum([len(wave) for wave in calm.waves.waves]).tolist()
    for lasts in sorted({1, *boundaries[:-1], *(end - 3 for end in boundaries)}):
        folder = tmp_path / str(lasts)
        with pytest.raises(RuntimeError, match="killed"):
            sample(folder, Counting(lasts))
        on_disk = Segments(folder / "t", Trajectory).records
        assert lasts - 4 < len(on_disk) <= lasts  # but for what was in flight
        again = Counting()
        pool = sample(folder, again)
        assert pool.wanted == calm.wanted and pool.waves == calm.waves
        assert again.calls == len(calm.wanted) - len(on_disk)
        assert {key: verdict.outcome for key, verdict in pool.verdicts.items()} == {
            key: verdict.outcome for key, verdict in calm.verdicts.items()
        }


def test_a_changed_verifier_buys_nothing_and_a_wider_budget_only_the_difference(tmp_path: Path) -> None:
    before = sample(tmp_path, Counting())
    again = Counting()
    judged = sample(tmp_path, again, verifier=Exact(lenient=True))
    assert again.calls == 0 and judged.wanted == before.wanted
    assert sum(map(bool, judged.verdicts.values())) > sum(map(bool, before.verdicts.values()))
    more = Counting()
    wider = sample(tmp_path, more, limits=Terms(tries=70, cap=2))
    assert wider.wanted[: len(before.wanted)] == before.wanted
    assert len(wider.wanted) <= 70 and more.calls == len(wider.wanted) - len(before.wanted) > 0
    fewer = Counting()
    narrow = sample(tmp_path, fewer, limits=Terms(tries=30, cap=2))
    assert fewer.calls == 0 and len(narrow.wanted) == 30  # the same tries come first


def test_another_policy_or_a_torn_plan_is_noticed(tmp_path: Path) -> None:
    sample(tmp_path, Counting())
    known = frozenset({("t9", ("10",))})
    before = read_json(tmp_path / WAVES, Waves)
    after = sample(tmp_path, Counting(), goal=Goal(cap=2, dedup=False, known=known)).waves
    assert after is not None and after.of != before.of
    (tmp_path / WAVES).write_text("{torn")
    with pytest.raises(RunError, match=r"waves.json cannot be read .* delete it"):
        sample(tmp_path, Counting())
    (tmp_path / WAVES).unlink()
    again = Counting()
    assert sample(tmp_path, again).waves is not None and again.calls == 0


def test_what_trains_already_is_not_bought_again(tmp_path: Path) -> None:
    goal = Goal(cap=1, known=frozenset((task.key, (str(at + 1),)) for at, task in enumerate(TASKS)))
    pool = sample(tmp_path, Counting(), goal=goal, limits=Terms(tries=90, cap=1))
    assert len(pool.wanted) == 90  # every task knows its one answer, so no success ends it
    assert select(pool, SelectionSettings(cap=1), 0, goal.known).kept == ()


def test_the_control_draws_from_the_first_wave_only(tmp_path: Path) -> None:
    pool = sample(tmp_path, Counting())
    assert [key.index for key in pool.first_wave.wanted] == [0] * 10 + [1] * 10
    real = select(pool, SelectionSettings(cap=2, dedup=False), 0)
    assert any(key.index > 1 for key in real.kept)
    assert {key.index for seed in range(9) for key in ignore_verdicts(pool, real, seed).kept} == {0, 1}


# ---------------------------------------------------------------- in the verbs and the ladder

ADAPTIVE = {
    "sampling.budget": "{budget: adaptive, first: 2, wave: 16, max_tries: 40, hopeless: 0.1}",
    "sampling.n": "6",
    "ladder.rungs": "[rejection-sampling]",
    "tasks.splits": "{demo: 4, train: 20, dev: 12, test: 4}",
}


def test_sample_as_a_verb_says_what_became_of_it(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "w"
    words = ["sample", str(scripted), str(work), "--sampling.budget", "adaptive", "--sampling.budget.wave", "16", "--sampling.n", "6"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "240 tries of 40 tasks" in said and "the first 4 of every task; all 240 tries are made" in said
    assert "in the first wave" in said
    before = sorted(path.read_bytes() for path in (work / "trajectories").iterdir())
    assert main(words) == 0
    assert before == sorted(path.read_bytes() for path in (work / "trajectories").iterdir())
    assert main(["select", str(scripted), str(work)]) == 0  # judged already


def test_a_ladder_with_an_adaptive_budget(scripted: Path, tmp_path: Path) -> None:
    loaded = load_settings(scripted, ADAPTIVE)
    climb(loaded, tmp_path / "runs")
    folder = tmp_path / "runs" / "ladder"
    waves = read_json(folder / "rungs/001-rejection-sampling/sampling" / WAVES, Waves)
    assert waves.ended and len(waves.waves) > 2 and len(waves.waves[0]) == 40
    assert not list((folder / "rungs").glob("*/dev/waves.json"))  # evaluation stays uniform
    ledger = (folder / "ledger.jsonl").read_text().splitlines()
    climb(loaded, tmp_path / "runs")
    stages = [line for line in (folder / "ledger.jsonl").read_text().splitlines()[len(ledger) :] if "outputs" in line]
    assert stages == []  # nothing is done again
    view = next(rung for rung in read_run(folder).rungs if rung.name == "001-rejection-sampling")
    assert view.budget.startswith(f"{sum(map(len, waves.waves))} tries in") and view.budget in (folder / "report.html").read_text()
    selection = json.loads((folder / "rungs/001-rejection-sampling/selection.json").read_text())
    assert len(selection["kept"]) + len(selection["left_out"]) == len(waves.tries) + 4
