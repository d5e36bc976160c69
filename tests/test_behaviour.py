"""What agents do and how they fail: real games, real tools, files of other packages, and tries that hold nothing, nothing but errors, or one endless loop."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sharpen.agents.base import with_shots
from sharpen.agents.recorded import replay
from sharpen.audit import Tries, audit
from sharpen.behaviour import FAULTS, MEASURES, as_pool, compare, describe, divergence, fault_of, faults, measured
from sharpen.environments.acts import Act, acts, turns
from sharpen.environments.single_turn import SingleTurn
from sharpen.environments.tools import Limits, ToolEnvironment, function_tools
from sharpen.formats.load import read
from sharpen.labels import Labels
from sharpen.records import Behaviour, Faults, Message, SampleKey, Task, Thread, ToolCall, Trajectory, Transfer, TurnTokens, Verdict
from sharpen.sampling import Pool
from sharpen.selection import SelectionSettings, select
from sharpen.store.files import read_json, write_json
from sharpen.tasks import textworld
from sharpen.tasks.base import Splits, TaskSet
from sharpen.tasks.textworld import TextWorld
from sharpen.testing import check_verifier
from sharpen.testing.generate import json_values, texts, turns_of
from sharpen.verifiers.behaviour import Behaved, BehaviourVerifier, Rules
from sharpen.verifiers.load import VerifierSettings, load_verifier
from sharpen.verifiers.outcome import EnvironmentOutcome

DATA = Path(__file__).parent / "data" / "formats"


def say(text: str = "", *calls: tuple[str, Any], problem: str | None = None) -> Message:
    made = tuple(ToolCall(id=f"c{at}", name=n, arguments=a if isinstance(a, str) else json.dumps(a)) for at, (n, a) in enumerate(calls))
    return Message(role="assistant", content=text, tool_calls=made, problem=problem)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def tried(*messages: Message, task: str = "t", index: int = 0, **more: Any) -> Trajectory:
    key = SampleKey(model="m", task=task, environment="e", sampling="s", index=index)
    return Trajectory(key=key, agent=more.pop("agent", "m"), messages=messages, stop=more.pop("stop", "done"), **more)


def judged(one: Trajectory, outcome: str = "fail") -> Verdict:
    return Verdict(key=one.key, outcome=outcome)  # type: ignore[arg-type]


# ---------------------------------------------------------------- games


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskSet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARPEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield textworld.load(TextWorld(splits=Splits(demo=4)))


ANYTHING = ["go north", "Go south.", "take the moon", "look", "dance", "", "inventory", "open open"]


def play(games: TaskSet, task: Task, seed: int, skill: float = 0.3) -> Trajectory:
    draw = random.Random(seed)
    gold = games.environment.expert(task) or ()
    wandering = [say for step in gold for say in [*(draw.choice(ANYTHING) for _ in range(int(draw.random() > skill) * 2)), step]]
    return asyncio.run(replay(task, games.environment, wandering, agent="wanderer", index=seed))


def test_what_a_game_refused_is_what_it_did_not_count_as_a_move(games: TaskSet) -> None:
    """The last answer is never shown; that it was a refusal stands in the moves."""
    unseen = 0
    for task in games.tasks:
        for seed in range(4):
            one = play(games, task, seed)
            done = acts(one)
            assert [act.kind for act in done] == ["command"] * len(one.actions)
            assert sum(bool(act.trouble) for act in done) == len(one.actions) - one.outcome["moves"]
            unseen += done[-1].trouble == "refused" and one.messages[-1].role == "assistant"
    assert unseen


def test_an_expert_makes_no_mistakes_and_its_verbs_are_named(games: TaskSet) -> None:
    for task in games.tasks:
        gold = games.environment.expert(task) or ()
        done = acts(asyncio.run(replay(task, games.environment, gold)))
        assert [act.name for act in done] == [step.split()[0] for step in gold]  # type: ignore[union-attr]
        assert not any(act.trouble or act.repeated or act.empty for act in done)


def test_a_refused_command_that_is_typed_again_is_a_loop_and_one_in_another_room_is_none(games: TaskSet) -> None:
    task = games.tasks[0]
    again = acts(asyncio.run(replay(task, games.environment, ["take the moon", "Take moon!", "dance", "take the moon"])))
    assert [act.failed_again for act in again] == [False, True, False, True]
    assert [act.trouble for act in again] == ["refused", "refused", "malformed", "refused"]
    told = tried(user("room a"), say("jump"), user("You can't do that now."), say("go east"), user("room b"), say("jump"),
                 user("You can't do that now."), outcome={"won": False})  # fmt: skip
    assert not any(act.repeated for act in acts(told))


# ---------------------------------------------------------------- tools


def half(number: int) -> int:
    """Half of a number.

    Args:
        number: An even number.
    """
    if number % 2:
        raise ValueError("odd")
    return number // 2


def test_errors_of_tools_are_told_apart_and_are_those_that_the_environment_counts() -> None:
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def box(task: Task) -> Any:
        yield function_tools([half])

    environment = ToolEnvironment("halves", box, Limits(max_turns=20))
    said = [
        say("", ("half", {"number": 8})),
        say("", ("half", {"number": 3})),
        say("", ("double", {"number": 3})),
        say("", ("half", {"n": 3})),
        say("", ("half", "8")),
        say("", ("half", '{"number": ')),
        say("half of 8?", problem="the tool call cannot be read"),
        say("", ("half", {"number": 3}), ("half", {"number": 8})),
        say("It is 4."),
    ]
    one = asyncio.run(replay(Task(key="t", family="t", prompt=(user("halve 8"),)), environment, said))
    done = acts(one)
    assert [(act.turn, act.name, act.trouble) for act in done] == [
        (0, "half", ""), (1, "half", "tool error"), (2, "(malformed)", "malformed"), (3, "half", "malformed"), (4, "half", "malformed"),
        (5, "half", "malformed"), (6, "(malformed)", "malformed"), (7, "half", "tool error"), (7, "half", ""), (8, "(answer)", ""),
    ]  # fmt: skip
    assert sum(bool(act.trouble) for act in done) == one.outcome["tool_errors"]
    assert [at for at, act in enumerate(done) if act.repeated] == [7, 8]  # the same calls with the same results, in another turn
    assert [at for at, act in enumerate(done) if act.failed_again] == [7]
    assert fault_of(one, judged(one)) == "wrong answer"


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("error: no such file", True), ("ValueError: odd", True), ("  Traceback (most recent call last):\n...", True), ('{"error": "no"}', True),
        ('{"isError": true}', True), ("Error rates are low", False), ("errors: none", False), ('{"error": null}', False), ('{"error', False),
        ("", False), ("{" * 50_000, False), ("terror: a film", False),
    ],
)  # fmt: skip
def test_which_answers_of_a_tool_tell_of_an_error(answer: str, wrong: bool) -> None:
    one = tried(user("?"), say("", ("f", {})), Message(role="tool", content=answer, tool_call_id="c0"))
    assert bool(acts(one)[0].trouble) is wrong


def test_names_may_be_anything_and_two_tools_may_share_one() -> None:
    schema = {"type": "function", "function": {"name": "поиск\u202e🔎", "parameters": {"properties": {"q": {}}, "required": ["q"]}}}
    one = tried(
        user("?"), say("", ("поиск\u202e🔎", {"q": "\ud800"}), ("", {}), ("x" * 9999, {})), tools=(schema, schema, {"name": "bare"})
    )
    first, *others = acts(one)
    assert (first.name, first.trouble) == ("поиск\u202e🔎", "") and {act.name for act in others} == {"(malformed)"}
    assert describe(as_pool([one], [judged(one)])).uses[0].name in ("(malformed)", first.name)


def test_a_call_is_answered_by_its_id_or_in_turn() -> None:
    def told(text: str, by: str | None = None) -> Message:
        return Message(role="tool", content=text, tool_call_id=by)

    calls = say("", ("a", {}), ("b", {}))
    assert [act.trouble for act in acts(tried(user("?"), calls, told("fine", "c1"), told("error: x", "c0")))] == ["tool error", ""]
    assert [act.trouble for act in acts(tried(user("?"), calls, told("error: x"), told("fine")))] == ["tool error", ""]
    assert [act.trouble for act in acts(tried(user("?"), calls))] == ["", ""]  # no result, so nothing is known


# ---------------------------------------------------------------- what counts as a try


def test_examples_before_the_task_are_nobodys_turns() -> None:
    shots = (user("2 + 2?"), say("4"), user("3 + 3?"), say("6"))
    one = tried(*with_shots((user("1 + 1?"),), shots), say("2"), turns=(TurnTokens(output=(5, 6)),), actions=("2",))
    assert [message.content for message in turns(one)] == ["2"] and len(acts(one)) == 1
    assert [message.content for message in turns(replace(one, turns=()))] == ["2"]  # by its actions, where no tokens are known
    assert measured(one, True)["tokens"] == 2 and math.isnan(measured(replace(one, turns=()), True)["tokens"])


def test_a_turn_that_was_cut_is_a_turn_and_no_act() -> None:
    one = tried(user("room"), say("look"), user("room"), say("I think that"), stop="token_limit", actions=("look",), outcome={"won": False})
    assert len(turns(one)) == 2 and [act.text for act in acts(one)] == ["look"] and fault_of(one, judged(one)) == "cut off"


def test_other_conversations_of_a_try_count_and_are_no_continuation() -> None:
    aside = Thread(messages=(user("sub"), say("", ("g", {})), user("x"), say("done")), turns=(TurnTokens(), TurnTokens()))
    one = tried(user("?"), say("", ("f", {})), say("answer"), turns=(TurnTokens(), TurnTokens()), threads=(aside,))
    assert [(act.thread, act.name) for act in acts(one)] == [(0, "f"), (0, "(answer)"), (1, "g"), (1, "(answer)")]
    assert fault_of(one, judged(one)) == "wrong answer"


def test_an_endless_loop_is_counted_in_full() -> None:
    one = tried(user("room"), *(m for _ in range(5000) for m in (say("xyzzy"), user("I did not understand that."))), stop="turn_limit")
    numbers = measured(one, False)
    assert numbers["repeats"] == numbers["failed_again"] == 4999 / 5000 and numbers["mends"] == 0
    assert fault_of(one, judged(one)) == "malformed"


# ---------------------------------------------------------------- classes of failure

TOOL = ({"type": "function", "function": {"name": "f"}},)
BAD = Message(role="tool", content="error: no", tool_call_id="c0")
CANNOT, LOST = user("You can't do that now."), {"won": False, "lost": True}
LATE = {"won": False, "lost": False, "out_of_turns": True}


@pytest.mark.parametrize(
    ("fault", "one"),
    [
        ("filtered", tried(user("?"), stop="filtered")),
        ("crashed", tried(user("?"), say("x"), stop="crashed")),
        ("overflow", tried(user("?"), say("x"), stop="overflow")),
        ("cut off", tried(user("?"), say("x"), stop="token_limit")),
        ("not accepted", tried(user("?"), say("x"), outcome={"won": True})),
        ("lost", tried(user("?"), say("eat key"), outcome=LOST)),
        ("says nothing", tried(user("?"), say("  "))),
        ("says nothing", tried(user("?"))),
        ("says nothing", tried(user("?"), say("ran the tests"), outcome={"exit": 0, "answer": ""})),
        ("says nothing", tried(user("?"), say(), user("a"), say(), user("b"), say("look"), outcome=LATE)),
        ("malformed", tried(user("?"), say(problem="no JSON"), user("error: no JSON"), stop="turn_limit", tools=TOOL)),
        ("loop", tried(user("a"), say("look"), user("a"), say("look"), user("a"), say("look"), outcome=LATE)),
        ("refused", tried(user("a"), say("eat"), CANNOT, say("fly"), CANNOT, say("look"), user("a"), stop="turn_limit", outcome=LATE)),
        ("tool errors", tried(user("?"), say("", ("f", {})), BAD, stop="turn_limit")),
        ("out of turns", tried(user("a"), say("go east"), user("b"), say("go east"), outcome=LATE)),
        ("used no tool", tried(user("?"), say("42"), tools=TOOL)),
        ("gave up", tried(user("?"), say("", ("f", {})), BAD, say("I cannot"), tools=TOOL)),
        ("wrong answer", tried(user("?"), say("42"))),
        ("wrong answer", tried(user("?"), say("hm"), user("go on"), say("42"))),
        ("other", tried(user("a"), say("go east"), outcome={"won": False, "moves": 1})),
    ],
)  # fmt: skip
def test_each_class_of_failure(fault: str, one: Trajectory) -> None:
    assert fault_of(one, judged(one)) == fault
    assert fault_of(one, judged(one, "pass")) == fault_of(one, judged(one, "error")) == ""
    assert fault_of(replace(one, stop="error"), judged(one)) == ""


@st.composite
def anything(draw: st.DrawFn) -> Trajectory:
    said = turns_of(TOOL, texts | st.sampled_from(["look", "go north"]))
    replies = st.lists(
        st.builds(Message, role=st.sampled_from(["user", "tool"]), content=texts | st.sampled_from(["error: x", CANNOT.content])),
        max_size=2,
    )
    messages = [user("?")]
    for turn in draw(st.lists(said, max_size=4)):
        messages += [turn, *draw(replies)]
    return tried(
        *messages,
        stop=draw(st.sampled_from(["done", "turn_limit", "token_limit", "overflow", "filtered", "crashed"])),
        tools=draw(st.sampled_from([(), TOOL, ({},)])),
        outcome=draw(st.dictionaries(st.sampled_from(["won", "lost", "moves", "answer", "out_of_turns"]), json_values, max_size=3)),
        actions=tuple(draw(st.lists(texts, max_size=5))),
    )


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(anything())
def test_whatever_happened_has_one_class_and_shares_that_are_shares(one: Trajectory) -> None:
    assert fault_of(one, judged(one)) in FAULTS
    numbers = measured(one, False)
    assert list(numbers) == list(MEASURES)
    for name, value in numbers.items():
        assert math.isnan(value) or (value >= 0 and (MEASURES[name].kind == "count" or value <= 1)), name
    for act in acts(one):
        assert act.name and isinstance(act, Act) and (not act.failed_again or act.trouble) and (not act.failed_again or act.repeated)


# ---------------------------------------------------------------- many tries


def pool(tasks: int, tries: int, make: Callable[[int, int], tuple[Sequence[Message], bool]], **more: Any) -> Pool:
    """``make(task, index)`` says what was said in a try, and whether it passed. Each task is a family."""
    made = []
    for task in range(tasks):
        for index in range(tries):
            said, passed = make(task, index)
            made.append((tried(user(f"task {task}"), *said, task=f"t{task}", index=index, **more), "pass" if passed else "fail"))
    return as_pool((one for one, _ in made), [judged(one, outcome) for one, outcome in made])


def commands(*words: str) -> list[Message]:
    return [m for word in words for m in (say(word), user(f"you {word}"))]


@pytest.mark.parametrize("tasks", [0, 1])
def test_nothing_is_known_of_no_tries_and_little_of_one_family(tasks: int, tmp_path: Path) -> None:
    none = pool(tasks, 2, lambda task, index: (commands("look"), True))
    found = describe(none)
    assert found.tries == 2 * tasks and math.isnan(found.pass_rate.low) and math.isnan(found.measures["turns"].low)
    transfer, failed = compare(none, none, none), faults(none, none, none, none)
    assert transfer.passes == transfer.behaves == "open" and transfer.flags == () and failed.rates == failed.new == ()
    for value in (found, transfer, failed):
        write_json(tmp_path / "x.json", value)
        assert str(read_json(tmp_path / "x.json", type(value))) == str(value)


def test_tries_that_broke_are_counted_and_in_no_number() -> None:
    broken = tried(user("?"), stop="error", error="the server is gone")
    assert describe(as_pool([broken], [judged(broken, "error")])).errors == 1
    fine = replace(tried(user("?"), say("4")), key=replace(broken.key, index=1))
    found = describe(as_pool([broken, fine], [judged(broken, "error"), judged(fine, "pass")]))
    assert (found.tries, found.errors, found.tasks, found.measures["turns"].value, found.pass_rate.value) == (2, 1, 1, 1.0, 1.0)
    alone = as_pool([broken], [judged(broken, "error")])
    assert faults(alone, alone, alone).rates == () and compare(alone, alone, alone).behaves == "open"


def test_each_task_counts_once_however_many_tries_it_has() -> None:
    one = [tried(user("?"), *commands("look"), task="a", index=at, outcome={"won": False}) for at in range(9)]
    other = tried(user("?"), *commands("look", "go", "eat"), task="b", outcome={"won": False})
    found = describe(as_pool([*one, other], [judged(t) for t in (*one, other)]))
    assert found.measures["turns"].value == 2.0 and found.uses[0].name == "look" and found.uses[1].share.value == 0.5


def test_files_of_other_packages_are_described() -> None:
    tries = [one for name in ("inspect.eval", "atif.json", "verifiers_traces.jsonl") for one in read(DATA / name)]
    assert len(tries) > 3
    found = describe(as_pool(tries, [judged(one, "pass") for one in tries]))
    assert found.uses and all(not use.name.startswith("(m") for use in found.uses) and found.measures["turns"].value >= 1


def test_an_agent_is_as_far_from_itself_as_chance_has_it() -> None:
    def wander(task: int, index: int, seed: str = "") -> tuple[list[Message], bool]:
        draw = random.Random(f"{seed}{task}/{index}")
        return commands(*(draw.choice(["look", "go", "take", "open"]) for _ in range(6))), True

    same = divergence(pool(30, 4, wander), pool(30, 4, lambda task, index: wander(task, index, "other")))
    assert same.halves == "tries" and same.within.value > 0.01  # what small numbers alone give
    assert same.excess.low < 0 < same.excess.high and abs(same.excess.value) < 0.03
    apart = divergence(pool(30, 4, wander), pool(30, 4, lambda task, index: (commands("eat", "eat"), True)))
    assert apart.between.value == 1.0 and apart.excess.low > 0.5 and "eat → eat" in {pair.acts for pair in apart.pairs}


def test_with_one_try_of_each_task_halves_are_tasks() -> None:
    found = divergence(*(pool(24, 1, lambda task, index, word=word: (commands("look", word), True)) for word in ("go", "eat")))  # type: ignore[misc]
    assert found.halves == "tasks" and found.within.value == 0 and found.excess.low > 0.3


def well(task: int, index: int) -> tuple[list[Message], bool]:
    return commands("look", "go", "take"), (task + index) % 2 == 0


def stutters(task: int, index: int) -> tuple[list[Message], bool]:
    return commands("look", "look", "look", "look", "go", "take"), (task + index) % 2 == 0


@pytest.mark.parametrize(
    ("student", "passes", "behaves", "flag"),
    [
        (well, "like", "like", ""),
        (stutters, "like", "unlike", "the student passes like its teacher (+0.0 points of pass rate"),
        (
            lambda task, index: (well(0, 0)[0], False),
            "unlike",
            "like",
            "the student behaves like its teacher and passes less often: -50.0 points",
        ),
        (lambda task, index: (well(0, 0)[0], True), "unlike", "like", "the student passes more often than its teacher: +50.0 points"),
    ],
)
def test_what_is_flagged_of_a_student(student: Any, passes: str, behaves: str, flag: str) -> None:
    teacher = pool(40, 2, well, agent="teacher")
    found = compare(teacher, teacher, pool(40, 2, student))
    assert (found.passes, found.behaves, bool(found.flags)) == (passes, behaves, bool(flag))
    assert (found.flags or ("",))[0].startswith(flag) and (behaves == "like" or "turns a try +3.0 [" in found.flags[0])
    assert found.gain.base == "teacher" and (found.gain.printed.low > 0) is flag.startswith("the student passes more")


def test_few_tasks_leave_it_open() -> None:
    teacher = pool(4, 2, lambda task, index: (commands("look", "go"), True))
    found = compare(teacher, teacher, teacher)
    assert found.behaves == "open" and found.flags == ()


def test_other_tasks_than_the_teachers_are_described_and_not_compared() -> None:
    teacher = pool(5, 1, lambda task, index: (commands("look"), True))
    other = as_pool([tried(user("?"), say("42"), task="elsewhere")], [judged(tried(user("?"), say("42"), task="elsewhere"))])
    found = compare(teacher, other, other)
    assert found.gain.printed.n == 0 and (found.passes, found.behaves, found.flags) == ("open", "open", ())
    assert found.teacher.measures["turns"].value == 1.0 and all(math.isnan(shift.from_teacher.value) for shift in found.shifts)


# ---------------------------------------------------------------- faults


def ended(fault: str, index: int = 0) -> tuple[list[Message], bool]:
    return {"pass": (commands("look"), True), "nothing": ([say(" ")], False), "wrong": ([say(f"42.{index}")], False)}[fault]


def test_a_copied_fault_is_told_from_one_of_ones_own() -> None:
    """Teacher and student say nothing on the same tasks; the self-trained one, that fails as often, answers wrongly."""

    def on_third(fault: str) -> Callable[[int, int], tuple[list[Message], bool]]:
        return lambda task, index: ended(fault if task % 3 == 0 else "pass")

    teacher, student, control = pool(30, 2, on_third("nothing")), pool(30, 2, on_third("nothing")), pool(30, 2, on_third("wrong"))
    found = faults(teacher, pool(30, 2, lambda task, index: ended("wrong")), student, control)
    assert [same.other for same in found.same] == ["before", "control"] and [same.tasks for same in found.same] == [10, 10]
    beside = found.same[1]
    assert (beside.student.value, beside.others.value, beside.difference.value) == (1.0, 0.0, 1.0) and beside.difference.low > 0
    assert beside.passes["student"].value == beside.passes["control"].value == 0.0
    assert {rate.fault: rate.shares["after"].value for rate in found.rates} == {"says nothing": pytest.approx(1 / 3), "wrong answer": 0.0}
    assert found.many == 10 and all(new.fault == "says nothing" for new in found.new)
    first = found.new[0]
    assert first.counts == {"teacher": (2, 2), "before": (0, 2), "after": (2, 2), "control": (0, 2)}
    assert list(first.trajectories) == ["teacher", "before", "after"] and first.trajectories["after"].messages[-1].content == " "


@pytest.mark.parametrize("passing", [0, 3])
def test_a_student_that_only_fails_less_often_is_no_less_like_its_teacher_at_equal_rates(passing: int) -> None:
    """Student and control fail in the same classes, half of the time the teacher's; the control passes more often, or never fails at all on some tasks."""

    def mixed(passes: int) -> Callable[[int, int], tuple[list[Message], bool]]:
        return lambda task, index: ended("pass" if index < passes else ("nothing", "wrong")[index % 2])

    teacher, student = pool(20, 1, lambda task, index: ended("nothing")), pool(20, 8, mixed(0))
    control = pool(20, 8, lambda task, index: ended("pass") if task < passing else mixed(6)(task, index))
    beside = faults(teacher, student, student, control).same[1]
    found = beside.at_equal_rate
    assert found is not None and (found.tasks, found.outside) == (20 - passing, passing)
    assert found.student.value == found.others.value == 0.5 and found.difference.value == 0.0  # unweighted the control's would be 0.125
    assert beside.passes["student"].value == 0.0 and beside.passes["control"].value == pytest.approx((passing + 0.75 * (20 - passing)) / 20)


def test_which_tasks_count_does_not_hang_on_the_student() -> None:
    teacher, control = pool(12, 2, lambda task, index: ended("nothing")), pool(12, 2, lambda task, index: ended("wrong"))
    student = pool(12, 2, lambda task, index: ended("nothing" if task < 3 else "pass"))
    beside = faults(teacher, control, student, control).same[1]
    found = beside.at_equal_rate
    assert found is not None and (found.tasks, beside.tasks) == (12, 3)
    assert (found.student.value, found.others.value, beside.student.value) == (0.25, 0.0, 1.0)
    assert found.difference.value == 0.25


def test_what_is_shown_side_by_side_holds_no_token_ids_and_a_pass_where_there_is_one() -> None:
    teacher = pool(1, 1, lambda task, index: ended("wrong"), turns=(TurnTokens(output=(1,)),))
    before = pool(1, 3, lambda task, index: ended("pass" if index == 1 else "nothing"))
    new = faults(teacher, before, teacher).new
    assert [one.fault for one in new] == ["wrong answer"]
    assert new[0].trajectories["before"].key.index == 1 and not any(one.turns for one in new[0].trajectories.values())


def test_nothing_came_along_where_the_teacher_never_fails() -> None:
    good, bad = (pool(8, 2, lambda task, index, how=how: ended(how)) for how in ("pass", "wrong"))  # type: ignore[misc]
    found = faults(good, bad, bad)
    assert found.same[0].tasks == 0 and math.isnan(found.same[0].difference.value) and found.many == 0
    equal = found.same[0].at_equal_rate
    assert equal is not None and (equal.tasks, equal.outside) == (0, 0) and math.isnan(equal.difference.value)


def test_real_games_played_well_and_badly(games: TaskSet, tmp_path: Path) -> None:
    def played(skill: float, agent: str) -> Pool:
        tries = [replace(play(games, task, seed, skill), agent=agent) for task in games.tasks for seed in range(3)]
        families = {task.key: task.family for task in games.tasks}
        verdicts = [EnvironmentOutcome().verify(task, one) for one in tries for task in games.tasks if task.key == one.key.task]
        return as_pool(tries, verdicts, families)

    expert, wanderer = played(1.0, "expert"), played(0.3, "wanderer")
    transfer = compare(expert, wanderer, wanderer)
    assert transfer.teacher.pass_rate.value == 1.0 and transfer.teacher.measures["erred"].value == 0.0 and transfer.teacher.faults == {}
    assert transfer.after.measures["erred"].value > 0.5 and sum(transfer.after.faults.values()) > 0
    assert transfer.apart.between.value > transfer.apart.within.value == 0.0  # an expert does the same every time
    failed = faults(expert, wanderer, wanderer)
    assert {rate.fault for rate in failed.rates} == set(transfer.after.faults) and failed.many == 0
    for name, value, kind in (("b", transfer, Transfer), ("f", failed, Faults), ("d", describe(expert), Behaviour)):
        write_json(tmp_path / name, value)
        assert str(read_json(tmp_path / name, kind)) == str(value)  # type: ignore[type-var]


# ---------------------------------------------------------------- rules on behaviour


def made(**rules: Any) -> BehaviourVerifier:
    return BehaviourVerifier(msgspec.convert({"verifier": "behaviour", **rules}, Behaved))


STUBBORN = tried(
    user("a"),
    say("eat"),
    CANNOT,
    say("eat"),
    CANNOT,
    say(""),
    user("I did not understand that."),
    say("look"),
    outcome={"won": True, "moves": 1},
    actions=("eat", "eat", "", "look"),
)


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"failed_again": 0}, "an act that failed before fails again, more than 0 times"),
        ({"failed_again": 1}, ""),
        ({"repeats": 0}, "the same act in the same state, more than 0 times"),
        ({"empty": 0, "turns": 2}, "a turn that says nothing, more than 0 times"),
        ({"malformed": 0}, "an act that cannot be read, more than 0 times"),
        ({"errors": 2}, "an act that went wrong, more than 2 times"),
        ({"errors": 3, "turns": 4}, ""),
        ({"turns": 3}, "a turn, more than 3 times"),
    ],
)
def test_each_rule_on_behaviour(rules: dict[str, int], why: str) -> None:
    verdict = made(**rules).verify(Task(key="t", family="t"), STUBBORN)
    assert (verdict.outcome, verdict.reason) == ("fail" if why else "pass", why)


def test_rules_on_behaviour_are_checked_and_name_themselves() -> None:
    for nothing in ({}, {"exact": True}):
        with pytest.raises(msgspec.ValidationError, match="behaviour sets no rule; set one of failed_again"):
            made(**nothing)
    with pytest.raises(msgspec.ValidationError):
        made(repeats=-1)
    assert made(repeats=0).name != made(repeats=1).name == made(repeats=1, exact=True).name
    assert not made(repeats=0).exact and made(repeats=0, exact=True).exact
    assert made(turns=9).verify(Task(key="t", family="t"), tried(user("?"))).reason == "nothing was done"


def test_beside_a_verifier_of_the_answer_they_pass_what_verifiers_are_held_to_and_audited() -> None:
    tasks = [
        Task(key=f"t{n}", family=f"t{n}", prompt=(user(f"{n} + 40?"),), params={"gold": str(n + 40)}, reference=str(n + 40))
        for n in range(4)
    ]
    rules = {"verifier": "behaviour", "empty": 0, "errors": 0, "exact": True}
    both = load_verifier(msgspec.convert({"verifier": "all", "of": [{"verifier": "exact", "exact": True}, rules]}, VerifierSettings))
    assert both.exact
    check_verifier(both, tasks, examples=10)
    found = audit(TaskSet("sums", tuple(tasks), SingleTurn(), both), Tries(), Labels())
    assert found.unstable == 0 and all(probe.right == probe.tried for probe in found.probes)
    alone = audit(TaskSet("sums", tuple(tasks), SingleTurn(), made(empty=0)), Tries(), Labels())
    assert {probe.kind for probe in alone.probes if probe.right < probe.tried} > {
        "off-task",
        "asks to be passed",
    }  # as its line in the table says


def test_in_a_game_they_fail_a_stubborn_win(games: TaskSet) -> None:
    given = {"verifier": "all", "of": ["environment", {"verifier": "behaviour", "failed_again": 0}]}
    both, task = load_verifier(msgspec.convert(given, VerifierSettings)), games.tasks[0]
    gold = games.environment.expert(task) or ()
    clean, stubborn = (asyncio.run(replay(task, games.environment, [*first, *gold])) for first in ((), ("fly", "fly")))
    assert EnvironmentOutcome().verify(task, stubborn).outcome == both.verify(task, clean).outcome == "pass"
    verdict = both.verify(task, stubborn)
    assert verdict.outcome == "fail" and "an act that failed before fails again" in verdict.reason


def test_known_faults_are_left_out_of_training_and_counted() -> None:
    """What counts as a success is not changed by it."""
    clean = tried(user("a"), say("look"), outcome={"won": True, "moves": 1}, index=1)
    tries = as_pool([STUBBORN, clean], [judged(STUBBORN, "pass"), judged(clean, "pass")])
    chosen = select(tries, SelectionSettings(behaviour=Rules(failed_again=0)), 0)
    assert chosen.kept == (clean.key,) and chosen.counts == {
        "kept": 1,
        "behaviour: an act that failed before fails again, more than 0 times": 1,
    }
    assert len(select(tries, SelectionSettings(), 0).kept) == 2 and tries.solved == 1


def test_the_page_in_docs_names_every_measure_and_class() -> None:
    page = (DATA.parents[2] / "docs" / "behaviour.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| ") and line.split("|")[1].strip() in FAULTS] == [
        f"| {name} | {words} |" for name, words in FAULTS.items()
    ]
    assert all(f"| `{name}` | {measure.words} |" in page for name, measure in MEASURES.items())
