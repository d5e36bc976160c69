"""The rollout loop and the one boundary: the policy's failures are fails, broken infrastructure is an error, and neither is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import later
from sharpen.agents.base import PolicyAgent, with_shots, without_shots
from sharpen.environments.single_turn import SingleTurn
from sharpen.errors import ContextOverflow, EnvironmentFault, PolicyError, SettingsError, TooManyErrors
from sharpen.policies.base import Conversation, Sampling, Turn
from sharpen.policies.scripted import ScriptedPolicy
from sharpen.records import Message, SampleKey, Task, Trajectory, Verdict
from sharpen.sampling import Pool, Progress, SamplingSettings, collect, fill
from sharpen.store.segments import Segments

TASKS = [Task(key=f"t{i}", family=f"t{i}", prompt=(Message(role="user", content=f"Calculate {i} + 1."),)) for i in range(12)]


class Exact:
    """Passes the sum."""

    name, exact = "sum", True

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        right = trajectory.messages[-1].content == str(int(task.key[1:]) + 1)
        return Verdict(key=trajectory.key, outcome="pass" if right else "fail", verifier=self.name)


def agent(policy: object, environment: object | None = None, max_tokens: int = 64) -> PolicyAgent:
    return PolicyAgent("a", policy, "m", environment or SingleTurn(), Sampling(max_tokens=max_tokens))  # type: ignore[arg-type]


def right(conversation: Conversation, rng: object) -> str:
    return str(int(conversation.messages[-1].content.split()[1]) + 1)


class Broken:
    """A policy that does ``what`` on every call, or on calls that ``when`` picks."""

    name, gives_token_ids = "broken", False

    def __init__(self, what: Callable[[], object], when: Callable[[int], bool] = lambda call: True) -> None:
        self.what, self.when, self.calls = what, when, 0
        self.well = ScriptedPolicy(right)

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        self.calls += 1
        if self.when(self.calls):
            result = self.what()
            if asyncio.iscoroutine(result):
                await result
        return await self.well.complete(conversation, sampling)

    async def close(self) -> None: ...


def fail_with(error: Exception) -> Callable[[], object]:
    def raise_it() -> object:
        raise error

    return raise_it


async def pool(tmp_path: Path, player: PolicyAgent, n: int = 1, **options: object) -> Pool:
    options = {"concurrency": 4, **options}
    return await fill(player, TASKS, range(n), Exact(), Segments(tmp_path / "t", Trajectory), Segments(tmp_path / "v", Verdict), **options)


async def test_a_policy_that_never_stops_fails_and_its_cut_turn_is_no_action(tmp_path: Path) -> None:
    made = await pool(tmp_path, agent(ScriptedPolicy(lambda c, r: "on and on " * 1000), max_tokens=8))
    for trajectory in made.trajectories.values():
        assert trajectory.stop == "token_limit"
        assert trajectory.actions == ()
    assert {verdict.outcome for verdict in made.verdicts.values()} == {"fail"}


async def test_a_stage_waits_for_what_is_under_way_and_never_for_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store syncs together what ends together: with a pace of an hour no try may be left waiting when nothing else is coming."""
    monkeypatch.setattr("sharpen.store.segments.TOGETHER_S", 3600.0)
    policy = Broken(fail_with(PolicyError("hiccup")), lambda call: call % 5 == 0)
    made = await pool(tmp_path, agent(policy), 2)
    assert len(made.trajectories) == len(made.verdicts) == 24


async def test_overflow_is_the_policys_failure(tmp_path: Path) -> None:
    made = await pool(tmp_path, agent(Broken(fail_with(ContextOverflow("too long")))))
    assert {trajectory.stop for trajectory in made.trajectories.values()} == {"overflow"}
    assert {verdict.outcome for verdict in made.verdicts.values()} == {"fail"}


async def test_one_broken_call_is_made_again_and_a_dead_engine_ends_the_stage_with_nothing_lost(tmp_path: Path) -> None:
    once = await pool(tmp_path / "once", agent(Broken(fail_with(PolicyError("hiccup")), lambda call: call == 3)))
    assert {verdict.outcome for verdict in once.verdicts.values()} == {"pass"}
    with pytest.raises(PolicyError, match="tries in a row broke, the last with: gone"):
        await pool(tmp_path / "dead", agent(Broken(fail_with(PolicyError("gone")), lambda call: call > 4)), concurrency=1)
    stored = Segments(tmp_path / "dead" / "t", Trajectory).records.values()
    assert sum(trajectory.stop == "done" for trajectory in stored) == 4
    again = await pool(tmp_path / "dead", agent(ScriptedPolicy(right)), concurrency=1)  # the engine is back
    assert [verdict.outcome for verdict in again.verdicts.values()] == ["pass"] * 12  # what the dead one broke is made again


class Faulty(SingleTurn):
    """An environment that raises or hangs on two tasks; what hangs has run for as long as it may when the others have ended."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.alone = what, asyncio.Event()

    def listen(self, seen: Progress) -> None:
        if seen.done == len(TASKS) - 2:
            self.alone.set()

    async def start(self, task: Task):  # type: ignore[no-untyped-def]
        episode, opening = await super().start(task)
        if task.key in ("t3", "t7"):
            if self.what == "raises":
                raise EnvironmentFault(f"task {task.key}: the environment raised KeyError")
            await self.alone.wait()
            later(601)
            await asyncio.Event().wait()
        return episode, opening


@pytest.mark.parametrize("what", ["raises", "hangs"])
async def test_an_environment_that_raises_or_hangs_is_an_error_on_its_own_tasks(what: str, tmp_path: Path) -> None:
    faulty = Faulty(what)
    made = await pool(tmp_path, agent(ScriptedPolicy(right), faulty), episode_timeout_s=600.0, listen=faulty.listen)
    by_task = {key.task: verdict.outcome for key, verdict in made.verdicts.items()}
    assert {task for task, outcome in by_task.items() if outcome == "error"} == {"t3", "t7"}
    assert sum(outcome == "pass" for outcome in by_task.values()) == 10
    broken = [trajectory for trajectory in made.trajectories.values() if trajectory.stop == "error"]
    assert all(trajectory.error for trajectory in broken)


async def test_what_is_on_disk_is_not_made_again(tmp_path: Path) -> None:
    policy = Broken(lambda: None)
    await pool(tmp_path, agent(policy), 2)
    calls = policy.calls
    assert calls == 24
    await pool(tmp_path, agent(policy), 3)
    assert policy.calls == 36


async def test_a_better_verifier_judges_again_without_buying_a_sample(tmp_path: Path) -> None:
    class Lenient(Exact):
        name = "lenient"

        def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
            return Verdict(key=trajectory.key, outcome="pass", verifier=self.name)

    policy = Broken(lambda: None)
    policy.well = ScriptedPolicy(lambda c, r: "wrong")
    made = await pool(tmp_path, agent(policy))
    assert {verdict.outcome for verdict in made.verdicts.values()} == {"fail"}
    calls = policy.calls
    trajectories, verdicts = Segments(tmp_path / "t", Trajectory), Segments(tmp_path / "v", Verdict)
    again = await fill(agent(policy), TASKS, range(1), Lenient(), trajectories, verdicts, concurrency=4)
    assert policy.calls == calls
    assert {verdict.outcome for verdict in again.verdicts.values()} == {"pass"}
    assert {verdict.verifier for verdict in Segments(tmp_path / "v", Verdict).records.values()} == {"lenient"}


async def test_closing_the_iterator_cancels_what_is_in_flight(tmp_path: Path) -> None:
    cancelled = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    policy = Broken(slow, lambda call: call > 2)
    wanted = [(task, 0) for task in TASKS]
    stream = collect(agent(policy), wanted, None, Segments(tmp_path / "t", Trajectory), Segments(tmp_path / "v", Verdict), concurrency=4)
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    assert len(cancelled) >= 2


async def test_progress_counts_passes_and_errors(tmp_path: Path) -> None:
    seen: list[Progress] = []
    await pool(tmp_path, agent(ScriptedPolicy(right), Faulty("raises")), listen=seen.append)
    assert seen[0].done == 0 and seen[-1].done == seen[-1].total == 12
    assert (seen[-1].passes, seen[-1].judged, seen[-1].errors) == (10, 10, 2)


async def test_the_key_names_model_task_environment_settings_and_index() -> None:
    one = agent(ScriptedPolicy(right)).key(TASKS[0], 0)
    assert one == agent(ScriptedPolicy(right)).key(TASKS[0], 0)
    others = [
        agent(ScriptedPolicy(right)).key(TASKS[0], 1),
        agent(ScriptedPolicy(right)).key(TASKS[1], 0),
        agent(ScriptedPolicy(right), max_tokens=65).key(TASKS[0], 0),
    ]
    assert len({one, *others}) == 4
    assert isinstance(one, SampleKey)


def test_shots_go_after_the_system_message_and_come_off_again() -> None:
    opening = (Message(role="system", content="s"), Message(role="user", content="u"))
    shots = (Message(role="user", content="q"), Message(role="assistant", content="a"))
    messages = with_shots(opening, shots)
    assert [message.content for message in messages] == ["s", "q", "a", "u"]
    key = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
    trajectory = Trajectory(key=key, agent="a", messages=messages, stop="done")
    assert without_shots(trajectory, shots).messages == opening
    assert without_shots(trajectory, ()) is trajectory


# ---------------------------------------------------------------- errors stay errors


async def test_over_a_share_of_errors_the_stage_stops_and_names_them_by_class(tmp_path: Path) -> None:
    dead = Broken(fail_with(PolicyError("the server\nis gone", "dead")), lambda call: call % 3 == 0 or call % 3 == 1)
    with pytest.raises(
        TooManyErrors,
        match=r"3 of 24 tries ended in an error \(3 dead\), over sampling.max_errors 0.1; the last: the server is gone",
    ):
        await pool(tmp_path, agent(dead), 2, concurrency=1, max_errors=0.1)
    stored = Segments(tmp_path / "t", Trajectory).records.values()
    assert sum(one.stop == "error" for one in stored) == 3 and sum(one.stop == "done" for one in stored) >= 2
    calls = Broken(lambda: None)
    mended = await pool(tmp_path, agent(calls), 2, max_errors=0.1)
    assert {verdict.outcome for verdict in mended.verdicts.values()} == {"pass"}
    assert calls.calls == 24 - sum(one.stop == "done" for one in stored)  # what was well is not bought again


async def test_a_verifier_that_errs_too_often_stops_the_stage_and_its_verdicts_are_made_again(tmp_path: Path) -> None:
    class Flaky(Exact):
        mended = False

        def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
            if not self.mended and task.key in ("t1", "t2", "t5"):
                raise ValueError(f"no such field in {task.key}")
            return super().verify(task, trajectory)

    def places() -> tuple[Segments[Trajectory], Segments[Verdict]]:
        return Segments(tmp_path / "t", Trajectory), Segments(tmp_path / "v", Verdict)

    policy, flaky = Broken(lambda: None), Flaky()
    with pytest.raises(TooManyErrors, match=r"2 of 12 verdicts ended in an error \(2 the verifier raised ValueError\)"):
        await fill(agent(policy), TASKS, range(1), flaky, *places(), concurrency=1, max_errors=0.1)
    let = await fill(agent(policy), TASKS, range(1), flaky, *places(), concurrency=1, max_errors=0.5)
    assert [verdict.outcome for verdict in let.verdicts.values()].count("error") == 3
    flaky.mended = True
    well = await fill(agent(policy), TASKS, range(1), flaky, *places(), concurrency=1, max_errors=0.1)
    assert {verdict.outcome for verdict in well.verdicts.values()} == {"pass"}
    assert policy.calls in (12, 13)  # the try under way when the stage stopped is made again


async def test_one_error_stops_no_small_stage(tmp_path: Path) -> None:
    once = Broken(fail_with(PolicyError("gone", "dead")), lambda call: call in (1, 2))
    made = await pool(tmp_path / "once", agent(once), concurrency=1, max_errors=0.0)
    (broken,) = [one for one in made.trajectories.values() if one.stop == "error"]
    assert (broken.fault, broken.error) == ("dead", "gone")


@pytest.mark.parametrize(("what", "fault"), [("raises", "environment"), ("hangs", "timeout")])
async def test_what_broke_is_named_by_its_class(what: str, fault: str, tmp_path: Path) -> None:
    faulty = Faulty(what)
    made = await pool(tmp_path, agent(ScriptedPolicy(right), faulty), episode_timeout_s=600.0, max_errors=0.5, listen=faulty.listen)
    assert {one.fault for one in made.trajectories.values() if one.stop == "error"} == {fault}


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_of_errors_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(SettingsError, match="max_errors is"):
        SamplingSettings(max_errors=share)
