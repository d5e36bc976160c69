"""One try out of several: what is chosen, what it costs, what is said of the others, and that no try is made twice."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conftest import FEW, LADDER, later
from sharpen.agents.base import Agent, PolicyAgent
from sharpen.agents.best_of_n import STRIDE, BestOfN, BestOfNAgent, ByMajority, ByVerifier, Opinion
from sharpen.agents.choose import make_several, most_turns
from sharpen.agents.ensemble import Ensemble, InTurn, Member
from sharpen.cli import main
from sharpen.environments.single_turn import SingleTurn
from sharpen.errors import EnvironmentFault, PolicyError, SettingsError, Unsettled
from sharpen.evaluation import EvaluationSettings, evaluate
from sharpen.models import open_folder
from sharpen.policies.base import Conversation, Sampling, Turn
from sharpen.policies.scripted import ScriptedPolicy, scripted_model
from sharpen.records import Message, SampleKey, Task, ToolCall, Trajectory, Verdict
from sharpen.report.page import chosen
from sharpen.report.read import read_run
from sharpen.run import climb
from sharpen.sampling import Pool, collect, fill
from sharpen.settings import load_settings
from sharpen.store.segments import Segments
from sharpen.verbs import select_, verify
from sharpen.verifiers.function import FunctionVerifier

TASKS = [Task(key=f"t{i}", family=f"t{i}", prompt=(Message(role="user", content="Roll."),), reference="6") for i in range(12)]
SIX = FunctionVerifier(lambda answer, reference: answer == reference, "six")


def roll(conversation: Conversation, rng: random.Random) -> str:
    return str(rng.randint(1, 6))


class Counting:
    """A scripted policy that counts its calls; on the calls that ``when`` picks it does ``what`` first."""

    name, gives_token_ids = "die", True

    def __init__(
        self, reply: Callable[..., str] = roll, what: Callable[[], object] = lambda: None, when: Callable[[int], bool] = lambda n: False
    ) -> None:
        self.calls, self.cancelled, self.most, self.inside = 0, 0, 0, 0
        self.what, self.when, self.well = what, when, ScriptedPolicy(reply)

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        self.calls += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if self.when(self.calls) and asyncio.iscoroutine(result := self.what()):
                await result
            return await self.well.complete(conversation, sampling)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1

    async def close(self) -> None: ...


def raises(error: Exception) -> Callable[[], object]:
    def what() -> object:
        raise error

    return what


async def hangs() -> None:
    await asyncio.Event().wait()


def single(policy: object | None = None, model: str = "m") -> PolicyAgent:
    return PolicyAgent(model, policy or Counting(), model, SingleTurn(), Sampling(max_tokens=16))  # type: ignore[arg-type]


def best(inner: Agent, n: int = 8, chooser: object = None, **options: object) -> BestOfNAgent:
    return BestOfNAgent(inner, n, chooser or ByVerifier(SIX, True), **options)  # type: ignore[arg-type]


async def pool(tmp_path: Path, agent: Agent, n: int = 1, tasks: list[Task] = TASKS, **options: object) -> Pool:
    options = {"concurrency": 4, **options}
    return await fill(agent, tasks, range(n), SIX, Segments(tmp_path / "t", Trajectory), Segments(tmp_path / "v", Verdict), **options)


def tried(
    text: str = "", *, stop: str = "done", actions: tuple[str, ...] = (), calls: tuple[ToolCall, ...] = (), **more: object
) -> Trajectory:
    key = SampleKey(model="m", task="t0", environment="e", sampling="s", index=0)
    messages = (Message(role="user", content="?"), Message(role="assistant", content=text, tool_calls=calls))
    return Trajectory(key=key, agent="a", messages=messages, stop=stop, actions=actions or (text,), **more)  # type: ignore[arg-type]


# ---------------------------------------------------------------- choosing


async def test_it_passes_where_any_of_its_tries_passes_and_its_tokens_are_as_sampled(tmp_path: Path) -> None:
    alone = await pool(tmp_path / "one", single(), 8)
    made = await pool(tmp_path / "best", best(single()))
    assert 0 < sum(map(bool, alone.verdicts.values())) < len(alone.verdicts)
    for task in TASKS:
        inner = [alone.trajectories[key] for key in alone.tries(task.key)]
        (key,) = made.tries(task.key)
        outer, choice = made.trajectories[key], made.trajectories[key].choice
        assert choice is not None and choice.grader and (choice.by, choice.wanted) == ("the grader itself (six)", 8)
        assert bool(made.verdicts[key]) == any(alone.verdicts[one.key] for one in inner)
        picked = inner[choice.chosen]
        assert (outer.turns, outer.messages, outer.outcome, outer.stop) == (picked.turns, picked.messages, picked.outcome, "done")
        assert picked.turns[0].output and [one.verdict for one in choice.tries] == [alone.verdicts[one.key].outcome for one in inner]
        assert outer.cost.sampled_tokens == sum(one.cost.sampled_tokens for one in inner) and outer.cost.turns == 8
        assert outer.cost.prompt_tokens == sum(one.cost.prompt_tokens for one in inner)
        assert (outer.agent, outer.key.index, outer.key.model) == ("m, best of 8 by the grader itself (six)", 0, "m")
    assert Segments(tmp_path / "best" / "t", Trajectory).records == made.trajectories  # as read back
    evaluation = evaluate(made, TASKS, "m", "dev", EvaluationSettings(n=1, k=(1,)), 0)
    assert evaluation.played == "each try is one of 8, chosen by the grader itself (six): pass@1 here is pass@8 of single tries"
    assert evaluate(alone, TASKS, "m", "dev", EvaluationSettings(n=8, k=(1,)), 0).played == ""


async def test_one_of_one_is_that_one() -> None:
    inner, outer = await single().run(TASKS[0], 0), await best(single(), 1).run(TASKS[0], 0)
    assert outer.messages == inner.messages and outer.choice is not None and len(outer.choice.tries) == 1
    assert outer.key != inner.key


async def test_no_two_tries_share_an_inner_one_and_the_key_names_what_made_it() -> None:
    agent, task = best(single()), TASKS[0]
    first, second = await agent.run(task, 0), await agent.run(task, 1)
    assert first.choice is not None and second.choice is not None
    numbers = [[one.index for one in choice.tries] for choice in (first.choice, second.choice)]
    assert numbers == [list(range(8)), list(range(STRIDE, STRIDE + 8))]
    assert agent.key(task, 0) == best(single()).key(task, 0)
    others = [
        agent.key(task, 1),
        agent.key(TASKS[1], 0),
        best(single(), 9).key(task, 0),
        best(single(model="other")).key(task, 0),
        best(single(), chooser=ByMajority()).key(task, 0),
        best(single(), chooser=ByMajority("x")).key(task, 0),
        best(single(), stop_at_pass=True).key(task, 0),
        best(InTurn([single(), single(model="other")])).key(task, 0),
        best(best(single())).key(task, 0),
        single().key(task, 0),
    ]
    assert len({agent.key(task, 0), *others}) == 11


@pytest.mark.parametrize(
    ("opinions", "picked"),
    [
        ([("fail", 9.0), ("pass", 0.1)], 1),  # a pass before any fail, whatever the scores
        ([("pass", 0.1), ("pass", 0.3), ("pass", 0.3)], 1),  # then the score, then the first
        ([("fail", None), ("fail", -5.0)], 1),
        ([("pass", None), ("pass", None)], 0),
        ([("error", None), ("fail", None)], 1),
        ([("error", None), ("error", 1.0)], None),
        ([], None),
    ],
)
def test_the_best_is_the_best_score_among_the_passes_and_the_first_among_equals(
    opinions: list[tuple[str, float]], picked: int | None
) -> None:
    assert ByVerifier(SIX).pick([Opinion(verdict, score) for verdict, score in opinions]) == picked  # type: ignore[arg-type]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
async def test_a_score_that_is_no_number_is_none(score: float) -> None:
    class Scores:
        name, exact = "scores", False

        def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
            first = trajectory.key.index == 0
            return Verdict(key=trajectory.key, outcome="pass", score=score if first else 0.5)

    outer = await best(single(), 3, ByVerifier(Scores())).run(TASKS[0], 0)
    assert outer.choice is not None and outer.choice.chosen == 1
    assert [one.score for one in outer.choice.tries] == [None, 0.5, 0.5]


async def test_a_chooser_that_breaks_is_left_out_and_where_it_always_does_the_try_is_an_error_whose_tries_are_kept(tmp_path: Path) -> None:
    policy, broken = Counting(), [True]

    def often(task: Task, trajectory: Trajectory) -> bool:
        if broken[0] or trajectory.key.index % 2 == 0:
            raise RuntimeError("no judge")
        return True

    kept = Segments(tmp_path / "kept", Trajectory)
    agent = best(single(policy), 4, ByVerifier(FunctionVerifier(often, "often")), kept=kept)
    made = await pool(tmp_path, agent, tasks=TASKS[:2])
    assert {one.stop for one in made.trajectories.values()} == {"error"} and policy.calls == 8  # the second attempt bought nothing
    assert all(
        "often could judge none of 4 tries: the verifier raised RuntimeError: no judge" in str(one.error)
        for one in made.trajectories.values()
    )
    broken[0] = False
    outer = await agent.run(TASKS[0], 0)
    assert policy.calls == 8 and outer.choice is not None and outer.choice.chosen == 1
    assert [one.verdict for one in outer.choice.tries] == ["error", "pass", "error", "pass"] and "no judge" in str(
        outer.choice.tries[0].error
    )


@pytest.mark.parametrize(
    ("tries", "picked"),
    [
        ([tried("7"), tried("6"), tried(" 6 ")], 1),
        ([tried("A b"), tried("c"), tried("C"), tried("a  B")], 0),  # a tie goes to the vote that came first
        ([tried(""), tried(" "), tried(""), tried("6")], 3),  # saying nothing is no vote
        ([tried(""), tried("")], 0),
        ([tried("7", stop="token_limit"), tried("7", stop="turn_limit"), tried("6")], 2),  # a cut answer neither
        (
            [tried("go", actions=("take", "go")), tried("stop", actions=("look", "go")), tried("go", actions=("look", "go"))],
            1,
        ),  # games: the actions
        (
            [
                tried("6", actions=("a", "6"), tools=({},)),
                tried("7", actions=("b", "7"), tools=({},)),
                tried("7", actions=("c", "7"), tools=({},)),
            ],
            1,
        ),
        (
            [
                tried("thinking", actions=("move(1)",), tools=({},), calls=(ToolCall(name="move", arguments="1"),)),
                tried("", actions=("move(2)",), tools=({},), calls=(ToolCall(name="move", arguments="2"),)),
                tried("", actions=("move(2)",), tools=({},), calls=(ToolCall(name="move", arguments="2"),)),
            ],
            1,
        ),
        (
            [tried("x", outcome={"answer": "5"}), tried("y", outcome={"answer": "6"}), tried("z", outcome={"answer": "6"})],
            1,
        ),  # an outside program
        ([tried("x", outcome={"answer": ""}, actions=("a", "b")), tried("x", outcome={"answer": "6"})], 0),
    ],
)
def test_the_majority(tries: list[Trajectory], picked: int) -> None:
    chooser = ByMajority()
    assert chooser.pick([chooser.opinion(TASKS[0], one) for one in tries]) == picked


def test_the_answer_that_is_voted_for_can_be_found_in_a_text() -> None:
    chooser = ByMajority(r"answer: (\d+)")
    texts = ("first answer: 1, no, answer: 6", "answer: 7", "so, answer: 6", "I cannot say")
    assert [chooser.opinion(TASKS[0], tried(text)).vote for text in texts] == ["6", "7", "6", None]
    assert ByMajority(r"\d+").opinion(TASKS[0], tried("1 or 2")).vote == "2"
    assert ByMajority("(x)|6").opinion(TASKS[0], tried("6")).vote is None  # its group is not there


async def test_the_majority_is_right_more_often_than_one_try(tmp_path: Path) -> None:
    def mostly(conversation: Conversation, rng: random.Random) -> str:
        return "6" if rng.random() < 0.5 else str(rng.randint(1, 5))

    alone = await pool(tmp_path / "one", single(Counting(mostly)), 8)
    made = await pool(tmp_path / "best", best(single(Counting(mostly)), 8, ByMajority()), 8)
    one, many = (sum(map(bool, tries.verdicts.values())) for tries in (alone, made))
    assert many > one
    assert not any(trajectory.choice.grader for trajectory in made.trajectories.values() if trajectory.choice)


# ---------------------------------------------------------------- what breaks


async def test_tries_that_break_are_left_out_and_counted() -> None:
    outer = await best(single(Counting(roll, raises(PolicyError("hiccup")), lambda call: call % 2 == 1))).run(TASKS[0], 0)
    assert outer.stop == "done" and outer.cost.turns == 4 and outer.choice is not None
    assert [one.error for one in outer.choice.tries] == ["hiccup", None] * 4
    assert "4 broke" in chosen(outer.choice) and outer.choice.chosen % 2 == 1


async def test_where_all_break_the_try_is_an_error(tmp_path: Path) -> None:
    policy = Counting(roll, raises(PolicyError("gone")), lambda call: True)
    made = await pool(tmp_path, best(single(policy), 3), tasks=TASKS[:2])
    assert [(one.stop, one.error) for one in made.trajectories.values()] == [("error", "gone")] * 2
    assert {verdict.outcome for verdict in made.verdicts.values()} == {"error"} and policy.calls == 2 * 2 * 3
    filtered = Counting(roll, raises(PolicyError("no", "content_filter")), lambda call: True)
    await pool(tmp_path / "f", best(single(filtered), 3), tasks=TASKS[:1])
    assert filtered.calls == 3  # it will say the same again


async def test_a_try_that_hangs_is_left_out_after_its_time_and_without_one_the_episode_ends_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:

    async def outlasts() -> None:
        """Has run for as long as it may when the other three have ended."""
        while policy.calls % 4 or policy.inside > 1:
            await asyncio.sleep(0)
        later(601)
        await hangs()

    policy = Counting(roll, outlasts, lambda call: call == 2)
    outer = await best(single(policy), 4, timeout_s=600.0).run(TASKS[0], 0)
    assert outer.choice is not None and [one.stop for one in outer.choice.tries] == ["done", "error", "done", "done"]
    assert "no end after 600 s" in str(outer.choice.tries[1].error)
    policy = Counting(roll, outlasts, lambda call: call % 4 == 2)
    made = await pool(tmp_path, best(single(policy), 4), tasks=TASKS[:1], episode_timeout_s=600.0)
    assert [one.stop for one in made.trajectories.values()] == ["error"] and policy.inside == 0 and policy.cancelled == 2


async def test_cancelling_cancels_every_inner_try(tmp_path: Path) -> None:
    policy = Counting(roll, hangs, lambda call: call > 4)
    stream = collect(
        best(single(policy), 4), [(task, 0) for task in TASKS], None,
        Segments(tmp_path / "t", Trajectory), Segments(tmp_path / "v", Verdict), concurrency=3,
    )  # fmt: skip
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    assert policy.inside == 0 and policy.cancelled >= 8


async def test_a_mistake_of_ours_is_no_error_of_the_try_and_ends_the_others() -> None:
    policy = Counting(roll, hangs, lambda call: call > 1)
    policy.well = ScriptedPolicy(lambda conversation, rng: str(1 // 0))
    with pytest.raises(ZeroDivisionError):
        await best(single(policy), 4).run(TASKS[0], 0)
    assert policy.inside == 0


async def test_at_most_so_many_inner_tries_run_at_once(tmp_path: Path) -> None:
    policy = Counting(roll, lambda: asyncio.sleep(0.005), lambda call: True)
    await pool(tmp_path, best(single(policy), 4, concurrency=3), concurrency=6)
    assert policy.most == 3 and policy.calls == 48


# ---------------------------------------------------------------- never twice


async def test_what_is_kept_is_not_made_again_for_a_larger_n_or_another_chooser(tmp_path: Path) -> None:
    policy = Counting()

    def agent(n: int, chooser: object = None, **options: object) -> BestOfNAgent:
        return best(single(policy), n, chooser, kept=Segments(tmp_path / "kept", Trajectory), **options)

    first = await pool(tmp_path, agent(4), 2)
    assert policy.calls == 2 * 4 * 12
    again = await pool(tmp_path, agent(4), 2)
    assert policy.calls == 96 and again.trajectories == first.trajectories
    await pool(tmp_path, agent(4, ByMajority()), 2)
    assert policy.calls == 96
    wider = await pool(tmp_path, agent(6), 2)
    assert policy.calls == 96 + 2 * 2 * 12
    assert {wider.trajectories[key].cost.turns for key in wider.wanted} == {6}  # what the choice took, whenever that was made


async def test_stopping_at_the_first_pass_is_the_same_choice_for_fewer_tokens(tmp_path: Path) -> None:
    whole, lazy = Counting(), Counting()
    all_ = await pool(tmp_path / "all", best(single(whole)), 2)
    some = await pool(tmp_path / "some", best(single(lazy), stop_at_pass=True), 2)
    passing = [(one, other) for one, other in zip(all_.wanted, some.wanted, strict=True) if all_.verdicts[one]]
    assert passing and [bool(all_.verdicts[key]) for key in all_.wanted] == [bool(some.verdicts[key]) for key in some.wanted]
    assert all(all_.trajectories[one].turns == some.trajectories[other].turns for one, other in passing)
    assert whole.calls == 8 * 24 and lazy.calls == sum(trajectory.cost.turns for trajectory in some.trajectories.values()) < whole.calls
    choice = some.trajectories[passing[0][1]].choice
    assert choice is not None and choice.tries[-1].verdict == "pass" and f"{8 - len(choice.tries)} not made" in chosen(choice)


# ---------------------------------------------------------------- ensembles


def always(text: str) -> PolicyAgent:
    return single(Counting(lambda conversation, rng: text), f"says-{text}")


async def test_members_take_turns_under_their_own_keys() -> None:
    one, other = always("1"), always("6")
    turns = InTurn([one, other])
    made = [await turns.run(TASKS[0], index) for index in range(4)]
    assert [trajectory.messages[-1].content for trajectory in made] == ["1", "6", "1", "6"]
    assert [trajectory.key for trajectory in made] == [agent.key(TASKS[0], at) for at, agent in enumerate((one, other, one, other))]
    assert [turns.key(TASKS[0], at) for at in range(4)] == [trajectory.key for trajectory in made]
    alone = InTurn([one])
    assert alone.key(TASKS[0], 3) == one.key(TASKS[0], 3) and alone.name == one.name


async def test_the_best_of_an_ensemble_says_who_made_it() -> None:
    agent = best(InTurn([always("1"), always("6"), always("1")]), 3)
    first, third = await agent.run(TASKS[0], 0), await agent.run(TASKS[0], 2)
    assert first.messages[-1].content == third.messages[-1].content == "6"
    assert (
        first.choice is not None and first.choice.tries[first.choice.chosen].agent == "says-6" and "made by says-6" in chosen(first.choice)
    )
    assert first.agent == "says-1 + says-6 + says-1, best of 3 by the grader itself (six)"
    vote = await best(InTurn([always("6"), always("1"), always("1")]), 3, ByMajority()).run(TASKS[0], 0)
    assert vote.messages[-1].content == "1" and vote.choice is not None and "2 votes for '1'" in chosen(vote.choice)


async def test_two_equal_members_make_different_tries() -> None:
    outer = await best(InTurn([single(), single()]), 8).run(TASKS[0], 0)
    assert outer.choice is not None and len({(one.model, one.index) for one in outer.choice.tries}) == 8
    assert outer.key.model == "m" and outer.key == best(single(), 8).key(TASKS[0], 0)  # which is what it is


async def test_the_best_of_the_best(tmp_path: Path) -> None:
    policy = Counting()
    outer = await best(best(single(policy), 3, ByMajority()), 2).run(TASKS[0], 1)
    assert policy.calls == 6 == outer.cost.turns and outer.choice is not None
    assert [one.agent for one in outer.choice.tries] == ["m, best of 3 by majority vote"] * 2


def test_what_the_settings_make_of_members() -> None:
    limits = {"concurrency": 4, "episode_timeout_s": 1.0, "verifier_timeout_s": 1.0}
    members = Ensemble(members=(Member(model="x"),), n=3)
    agent = make_several(members, [single(), single(model="x")], SIX, None, **limits)
    assert isinstance(agent, BestOfNAgent) and agent.n == members.tries == 6 and isinstance(agent.inner, InTurn)
    turns = Ensemble(members=(Member(model="x"),), by="rotation")
    assert isinstance(make_several(turns, [single(), single(model="x")], SIX, None, **limits), InTurn) and turns.tries == 1
    alone = make_several(BestOfN(), [single()], SIX, None, **limits)
    assert isinstance(alone, BestOfNAgent) and isinstance(alone.inner, PolicyAgent) and alone.n == 8
    with pytest.raises(SettingsError, match="the tasks have none"):
        make_several(BestOfN(), [single()], None, None, **limits)
    assert most_turns(SingleTurn(), None, BestOfN(n=5)) == 5 and most_turns(SingleTurn(), None, members) == 6


# ---------------------------------------------------------------- settings, verbs and the ladder

MISTAKES = {
    "best-of": r"agent\.agent is 'best-of'; did you mean 'best-of-n'\?",
    "best-of-n --agent.n 0": "n is 0, but must be at least 1",
    "best-of-n --agent.n 99999": "n is 99999, but can be at most 65536",
    "best-of-n --agent.by majorty": r"by is 'majorty'; did you mean 'majority'\?",
    "best-of-n --agent.by rotation": "by is 'rotation'; known: majority, verifier;",
    "best-of-n --agent.by nowhere.py:judge": "no file 'nowhere.py'",
    "best-of-n --agent.m 3": r"unknown setting 'agent\.m'",
    "best-of-n --agent.plays sampln": r"agent\.plays is 'sampln'; did you mean 'sampling'\?",
    "best-of-n --agent.by majority --agent.stop_at_pass true": "stop_at_pass is for by: verifier",
    "best-of-n --agent.by majority --agent.answer (": r"answer '\(' is no regular expression",
    "best-of-n --agent.answer x": "so it is for by: majority",
    "best-of-n --agent.threshold 0.5": "threshold is for a verifier of its own",
    "best-of-n --evaluation.temperature 0 --evaluation.n 1 --evaluation.k [1]": "temperature 0 gives the agent the same try 8 times",
    "ensemble": "missing required field `members`",
    "ensemble --agent.members []": "one model is no ensemble",
    "ensemble --agent.members [{modl: x}]": r"unknown setting 'agent\.members\[0\]\.modl'; did you mean 'model'\?",
    "ensemble --agent.members [{model: x, engine: opnvino}]": r"agent\.members\[0\]\.engine\.engine is 'opnvino'; did you mean 'openvino'\?",
    "ensemble --agent.members [x]": r"agent\.members\[0\]: Expected `object`",
    "ensemble --agent.members {model: x}": "Expected `array`",
    "ensemble --agent.members [{model: /no/where}]": "there is no model folder /no/where",
    "ensemble --agent.members [{model: x}] --agent.by rotation --agent.n 2": "by: rotation chooses nothing",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_ends_in_one_line(flags: str, scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    words: list[str] = []
    for flag in f"--agent {flags}".split(" --"):
        key, _, value = flag.removeprefix("--").partition(" ")
        words += [f"--{key}", value]
    assert main(["eval", str(scripted), str(tmp_path / "work"), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(MISTAKES[flags], error), error


def read(work: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(work.rglob("*.jsonl"))]


def test_the_best_of_eight_is_measured_like_any_agent_and_says_who_chose(
    scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, many = tmp_path / "one", tmp_path / "bo8"
    command = ["eval", str(scripted), str(many), "--agent", "best-of-n", "--agent.n", "8"]
    assert main(["eval", str(scripted), str(one)]) == 0 and "chosen" not in capsys.readouterr().out
    assert main(command) == 0
    assert "chosen by the grader itself (" in (said := capsys.readouterr().out) and "pass@1 here is pass@8 of single tries" in said
    evaluations = [json.loads((work / "evaluation.json").read_bytes()) for work in (one, many)]
    assert evaluations[0]["pass_at"]["1"]["value"] < 0.4 < 0.7 < evaluations[1]["pass_at"]["1"]["value"]
    assert evaluations[1]["cost"]["turns"] == 8 * evaluations[0]["cost"]["turns"] == 8 * 160
    before = read(many)
    assert main(command) == 0 and read(many) == before  # nothing is made again
    assert len(Segments(many / "considered", Trajectory).records) == 8 * 160
    assert main([*command, "--agent.by", "majority"]) == 0 and "chosen by majority vote" in capsys.readouterr().out
    assert len(Segments(many / "considered", Trajectory).records) == 8 * 160
    assert main(["show", str(many), "--limit", "1"]) == 0 and "of 8, chosen by" in capsys.readouterr().out


def test_what_was_chosen_is_judged_selected_trained_and_exported(scripted: Path, tmp_path: Path) -> None:
    work, flags = tmp_path / "tries", ["--agent", "best-of-n", "--agent.n", "4", "--sampling.n", "2"]
    assert main(["sample", str(scripted), str(work), *flags]) == 0
    settings = load_settings(scripted, {})
    assert verify(settings, work)["pass"] > 30 and select_(settings, work).kept
    assert main(["train", str(scripted), str(work), "--out", str(tmp_path / "model")]) == 0
    rows = [json.loads(line) for line in (work / "training_set/rows.jsonl").read_text().splitlines()]
    by_key = Segments(work / "trajectories", Trajectory).records
    assert rows and {row["origin"] for row in rows} == {"sampled"}
    for row in rows:
        trajectory = by_key[SampleKey(**row["key"])]
        assert tuple(label for label in row["labels"] if label != -100) == trajectory.turns[0].output
    for format in ("atif", "hub"):
        out, back = tmp_path / f"{format}.jsonl", tmp_path / format
        assert main(["export", str(work), str(out), "--format", format]) == 0
        assert main(["import", str(out), str(back)]) == 0
        imported = Segments(back / "trajectories", Trajectory).records.values()
        assert [one.choice for one in imported] == [by_key[one.key].choice for one in imported] and all(one.choice for one in imported)


def test_an_adaptive_budget_counts_every_inner_try(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {
        "sampling.budget": "adaptive",
        "tasks.splits.train": "4",
        "sampling.budget.max_tries": "6",
        "agent": "best-of-n",
        "agent.n": "8",
    }
    command = ["sample", str(scripted), str(tmp_path / "w"), *(word for key, value in flags.items() for word in (f"--{key}", value))]
    worst = 8 * 32  # tokens: inner tries times max_tokens
    assert main([*command, "--sampling.budget.tokens", str(4 * 4 * worst - 1)]) == 2
    assert f"({worst} each at worst)" in capsys.readouterr().err
    assert main([*command, "--sampling.budget.tokens", str(4 * 4 * worst)]) == 0


@pytest.fixture
def pair(scripted: Path, tmp_path: Path) -> tuple[Path, str]:
    scripted_model(tmp_path / "other", skill=0.5, name="other")
    return scripted, f"[{{model: {tmp_path / 'other'}}}]"


def test_an_ensemble_is_measured(pair: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, members = pair
    ensemble = ["--agent", "ensemble", "--agent.members", members, "--tasks.splits", FEW]
    assert main(["eval", str(settings), str(tmp_path / "turns"), *ensemble, "--agent.by", "rotation"]) == 0
    assert "tries made in turn by scripted, other" in capsys.readouterr().out
    made = Segments(tmp_path / "turns/trajectories", Trajectory).records.values()
    assert [sum(one.agent == name for one in made) for name in ("scripted", "other")] == [24, 24]
    assert not (tmp_path / "turns/considered").exists()
    assert main(["eval", str(settings), str(tmp_path / "best"), *ensemble, "--agent.n", "2"]) == 0
    made = Segments(tmp_path / "best/trajectories", Trajectory).records.values()
    assert {len(one.choice.tries) for one in made if one.choice} == {4}
    assert {one.choice.tries[at].agent for one in made if one.choice for at in (0, 2)} == {"scripted"}


ENGINE = """
from sharpen.policies.scripted import open_scripted

left = []

def engine(model, fails=False):
    if fails:
        raise RuntimeError("no room")
    policy = open_scripted(model)
    left.append(policy)
    return policy
"""


@pytest.mark.parametrize("fails", [False, True])
def test_every_member_is_closed_also_where_one_cannot_be_opened(
    fails: bool, pair: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sharpen import plugins

    (tmp_path / "engine.py").write_text(ENGINE)
    monkeypatch.chdir(tmp_path)
    engine = "{engine: plugin, name: 'engine.py:engine'}"
    other = f"[{{model: {tmp_path / 'other'}, engine: {{engine: plugin, name: 'engine.py:engine', settings: {{fails: {str(fails).lower()}}}}}}}]"
    flags = {"engine": engine, "agent": "ensemble", "agent.members": other, "tasks.splits": FEW}
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    opened = plugins.load("engine.py:engine", "policy").__globals__["left"]
    assert main(["eval", str(pair[0]), str(tmp_path / "w"), *words]) == (2 if fails else 0)
    assert len(opened) == (1 if fails else 2) and all(policy._closed for policy in opened)
    assert not fails or "no room" in capsys.readouterr().err
    opened.clear()
    if not fails:
        flags["ladder.rungs"] = "[rejection-sampling]"
        with pytest.raises(Unsettled, match="tries by the member other would train scripted and are the words of 'other'"):
            climb(load_settings(pair[0], flags), tmp_path / "runs")
        assert not opened  # before the first token
        leave = "licence: MIT, settled_by: Ann, settled_on: 2026-01-01, evidence: 'https://example.org/licence'"
        climb(load_settings(pair[0], {**flags, "terms": f"[{{teacher: other, {leave}}}]"}), tmp_path / "runs")
        assert len(opened) > 2 and all(policy._closed for policy in opened)
        rung = tmp_path / "runs/ladder/rungs/001-rejection-sampling"
        rows = [json.loads(line)["maker"] for line in (rung / "training_set/rows.jsonl").read_text().splitlines()]
        assert {one["name"] for one in rows if one.get("terms")} == {"expert", "other"}
        assert [one.teacher for one in open_folder(rung / "model").lineage.terms] == ["expert", "other"]


def test_a_ladder_distils_the_best_of_four_into_single_tries(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {
        "agent": "best-of-n",
        "agent.n": "4",
        "agent.plays": "sampling",
        "ladder.rungs": "[few-shot, rejection-sampling]",
        "tasks.splits": FEW,
    }
    climb(load_settings(scripted, flags), tmp_path / "runs")
    said = capsys.readouterr().err
    assert "rejection-sampling: no control, since the verifier chose every try" in said
    folder = tmp_path / "runs/ladder/rungs/002-rejection-sampling"
    tries = Segments(folder / "sampling/trajectories", Trajectory).records
    assert tries and all(one.choice is not None and one.choice.wanted == 4 for one in tries.values())
    assert len(Segments(folder / "sampling/considered", Trajectory).records) == 4 * len(tries)
    rows = [json.loads(line) for line in (folder / "training_set/rows.jsonl").read_text().splitlines()]
    base, _, sampled = read_run(tmp_path / "runs/ladder").rungs
    standing = (
        "sampled" if "few-shot prompt" not in next(iter(tries.values())).agent else "rendered"
    )  # few-shot tries train without their prompt
    assert {row["origin"] for row in rows if row["source"] == "sampled"} == {standing}
    assert base.dev is not None and base.dev.played == "" and sampled.gain is not None and sampled.gain.printed.value > 0
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "runs").rglob("*.jsonl") if path.name != "ledger.jsonl")
    climb(load_settings(scripted, flags), tmp_path / "runs")
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "runs").rglob("*.jsonl") if path.name != "ledger.jsonl")


def test_a_ladder_whose_every_try_is_a_majority_says_so(scripted: Path, tmp_path: Path) -> None:
    flags = {"agent": "best-of-n", "agent.n": "3", "agent.by": "majority", "ladder.rungs": "[rejection-sampling]", "tasks.splits": FEW}
    climb(load_settings(scripted, {**flags, "ladder.retries": "0"}), tmp_path / "runs")
    view = read_run(tmp_path / "runs/ladder")
    assert "each try is one of 3, chosen by majority vote" in view.banners
    assert [rung.control for rung in view.rungs] == [False, False, True]  # the verifier had no hand in the choice
    assert "of 3, chosen by majority vote" in (tmp_path / "runs/ladder/report.html").read_text()


def test_another_verifier_can_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    scripted_model(tmp_path / "base", skill=0.2)
    (tmp_path / "judge.py").write_text("def longest(task, trajectory):\n    return len(trajectory.messages[-1].content)\n")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**LADDER, "model": str(tmp_path / "base")}))
    monkeypatch.chdir(tmp_path)
    command = ["eval", "s.yaml", "w", "--agent", "best-of-n", "--agent.by", "judge.py:longest", "--tasks.splits", FEW]
    assert main(command) == 2 and "no threshold says from where on it is a pass" in capsys.readouterr().err
    assert main([*command, "--agent.threshold", "0"]) == 0
    assert "chosen by judge.py:longest;" in capsys.readouterr().out
    made = [one for one in Segments(tmp_path / "w/trajectories", Trajectory).records.values() if one.stop != "error"]
    assert len(made) == 48
    for one in made:
        assert one.choice is not None and not one.choice.grader
        scores = [other.score for other in one.choice.tries]
        assert scores[one.choice.chosen] == max(score for score in scores if score is not None) == len(one.messages[-1].content)


async def test_an_inner_agent_that_gives_errors_as_trajectories(tmp_path: Path) -> None:
    class Gives:
        name = "gives"

        def key(self, task: Task, index: int) -> SampleKey:
            return single().key(task, index)

        async def run(self, task: Task, index: int) -> Trajectory:
            return Trajectory(key=self.key(task, index), agent="gives", messages=task.prompt, stop="error", error="it broke")

    with pytest.raises(EnvironmentFault, match="it broke"):
        await best(Gives(), 2, kept=Segments(tmp_path, Trajectory)).run(TASKS[0], 0)
    assert not list(tmp_path.iterdir())
