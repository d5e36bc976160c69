"""Hints: tasks that were never solved, tried with the solution shown. What trains holds nothing of it, and nothing that counts knows of it."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sharpen.agents.harness import Harness
from sharpen.audit import tries_in
from sharpen.chat.load import load_template
from sharpen.chat.masks import pieces
from sharpen.chat.scripted import END, END_ID
from sharpen.environments.base import Episode, Step
from sharpen.environments.single_turn import SingleTurn
from sharpen.errors import Refused, SettingsError, Stopped, Unsettled
from sharpen.labels import BAR, Labels, measure
from sharpen.methods.base import Bench, Prompted
from sharpen.methods.hints import OVER_SHARE, SPEAKS_OF_IT, Hinted, Hints, hinted, showable, speaks_of
from sharpen.models import load_model
from sharpen.policies.base import Conversation
from sharpen.policies.choose import Auto
from sharpen.policies.meter import Meter, Spending
from sharpen.policies.plugin import PolicyPlugin
from sharpen.policies.scripted import Scripted, ScriptedPolicy, scripted_model
from sharpen.records import Decision, Message, Model, RoundPurity, SampleKey, Task, ToolCall, Trajectory, Verdict
from sharpen.report.page import bought
from sharpen.report.read import read_run, read_samples
from sharpen.sampling import HINTS, Pool, SamplingSettings
from sharpen.selection import HINTED, build_rows, merge, select
from sharpen.store.files import write_json
from sharpen.store.run import Run
from sharpen.tasks.base import Splits, TaskSet
from sharpen.tasks.load import load_tasks
from sharpen.tasks.reasoning_gym import ReasoningGym
from sharpen.terms import TermsSettings
from sharpen.verifiers.function import FunctionVerifier, answer_of
from sharpen.verifiers.outcome import EnvironmentOutcome

RUNG = "rungs/001-rejection-sampling"
HINT = re.compile(r"known to be right:\n(.*?)\nNow do the task", re.S)
Reply = Callable[[Conversation, random.Random], str]


def copies(conversation: Conversation, rng: random.Random) -> str:
    """Says what the hint in the last message says; without one, solves what is easy."""
    asked = conversation.messages[-1].content
    found = HINT.search(asked)
    return found[1] if found else asked.removeprefix("say ") if asked.startswith("say ") else "no idea"


REPLIES: dict[str, Reply] = {"copies": copies, "speaks": lambda asked, rng: f"As the hint says: {copies(asked, rng)}"}
ASKED: list[Conversation] = []


def student(model: Model, reply: str = "copies", context: int = 1 << 20) -> ScriptedPolicy:
    def heard(conversation: Conversation, rng: random.Random) -> str:
        ASKED.append(conversation)
        return REPLIES[reply](conversation, rng)

    return ScriptedPolicy(heard, model.name, Scripted(context=context))


def right(task: Task, trajectory: Trajectory) -> bool:
    """Raises where it sees a hint: a judge that reads it is no judge."""
    assert not any(HINT.search(message.content) for message in trajectory.messages)
    return answer_of(trajectory).endswith(str(task.reference))


def task(name: str, asked: str, **more: Any) -> Task:
    return Task(key=name, family=name, split="train", prompt=(Message(role="user", content=asked),), **more)


def hard(number: int, solution: str = "") -> Task:
    solution = solution or f"the {number}th secret"
    return task(f"hard{number:02}", f"Which secret is number {number}?", params={"gold": solution}, reference=solution)


def easy(number: int) -> Task:
    return task(f"easy{number:02}", f"say {number}", params={"gold": str(number)}, reference=str(number))


def bench(folder: Path, tasks: Sequence[Task], environment: Any = None, verifier: Any = None, **more: Any) -> Bench:
    """A bench at ``tasks`` with a scripted model that never solves a hard one."""
    ASKED.clear()
    if not (folder / "base").exists():
        scripted_model(folder / "base", skill=0.0, name="small")
    of = TaskSet("made up", tuple(tasks), environment or SingleTurn(), verifier or FunctionVerifier(right, "right", exact=True))
    settings = {"sampling": SamplingSettings(n=2, max_tokens=64), "engine": PolicyPlugin(name="test_hints:student")} | more
    return Bench(run=Run.open(folder / "run", "name: run\n"), tasks=of, base=load_model(str(folder / "base")), seed=3, **settings)


def round_(at: Bench, shots: tuple[Message, ...] = (), settings: Hints | None = None) -> tuple[Pool, Hinted]:
    """A round's tries, and what hints make of the tasks that it leaves unsolved."""
    standing = Prompted(at.base, shots)
    pool = at.sample(f"{RUNG}/sampling", standing, at.tasks.split("train").tasks, at.sampling)
    good = select(pool, at.selection, at.seed)
    beside = [("sampled", pool.trajectories[key]) for key in good.kept]
    return pool, hinted(at, RUNG, standing, pool, beside, settings or Hints())


# ---------------------------------------------------------------- what trains


@pytest.mark.parametrize("shots", [(), (Message(role="user", content="say a"), Message(role="assistant", content="a"))])
def test_what_trains_is_as_if_nothing_had_been_shown(shots: tuple[Message, ...], tmp_path: Path) -> None:
    with bench(tmp_path, [*map(hard, range(3)), *map(easy, range(12))]) as at:
        pool, made = round_(at, shots)
        assert pool.solved == 12 and made.unsolved == made.shown == made.pool.solved == len(made.survivors) == 3
        shown = [one for one in ASKED if HINT.search(one.messages[-1].content)]
        assert len(shown) == 3 * 4 and {len(one.messages) for one in shown} == {len(shots) + 1}
        for source, one in made.survivors:
            (asked,) = at.tasks.split("train").tasks[int(one.key.task[-1])].prompt
            assert source == "hinted" and one.messages == (asked, Message(role="assistant", content=one.messages[-1].content))
            assert one.hint is not None and HINT.search(one.hint)[1] == one.messages[-1].content  # type: ignore[index]
        template = load_template(at.base)
        rows, selection = build_rows(made.selection, made.survivors, template, 1000)
        for row in rows:
            before, learnt = pieces(row, template)
            assert (
                "right" not in template.decode(row.input_ids)
                and not before[1]
                and learnt == (f"the {row.key.task[-1]}th secret{END}", True)
            )
            assert (row.source, row.origin) == ("hinted", "rendered") and row.maker is not None
            assert (row.maker.name, [terms.teacher for terms in row.maker.terms]) == ("small", ["expert"])
        assert selection.rows is not None and selection.rows.sources == {"hinted": 3} and selection.rows.rendered_because == {HINTED: 3}
        model, _ = at.train(RUNG, at.base, rows, selection)
        assert [terms.teacher for terms in model.lineage.terms] == ["expert"]
        at.engine = Auto()  # the trained model itself: it now solves, without a hint, what it never did
        again = at.sample(f"{RUNG}/again", Prompted(model), [one for one in at.tasks.tasks if one.key.startswith("hard")], at.sampling)
        assert again.solved == 3 and all(again.trajectories[key].hint is None for key in again.wanted)


def test_names_of_control_tokens_in_a_solution_stay_text(tmp_path: Path) -> None:
    sly = f"one{END}\n<|assistant|>\nand more"
    with bench(tmp_path, [hard(1, sly), *map(easy, range(8))]) as at:
        _, made = round_(at)
        rows, _ = build_rows(made.selection, made.survivors, load_template(at.base), 1000)
    (row,) = rows
    assert [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != -100] == [*sly.encode(), END_ID]
    assert row.input_ids.count(END_ID) == 2


SPEAK = [
    ("As the hint says, it is 5.", True),
    ("The reference answer is 5.", True),
    ("I write this as if you had NOT seen that, solution: 5", True),  # the wording's own words
    ("According to the provided solution: 5", True),
    ("The solution that I was shown is 5", True),
    ("The correct answer is 5, so the solution is right.", False),
    ("5", False),
]


@pytest.mark.parametrize(("text", "speaks"), SPEAK)
@pytest.mark.parametrize("where", ["content", "reasoning", "call"])
def test_what_speaks_of_the_hint_does_not_train(text: str, speaks: bool, where: str) -> None:
    said: dict[str, Message] = {
        "content": Message(role="assistant", content=text),
        "reasoning": Message(role="assistant", content="5", reasoning=text),
        "call": Message(role="assistant", content="", tool_calls=(ToolCall(name="answer", arguments=f'{{"text": "{text}"}}'),)),
    }
    key = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)

    def spoken(asked: str, solution: str = "5") -> bool:
        given = task("t", asked)
        one = Trajectory(key=key, agent="m", messages=(*given.prompt, said[where], Message(role="user", content=text)), stop="done")
        return speaks_of(given, one, solution, Hints().wording)

    assert spoken("What is 2 + 3?") == speaks
    assert not spoken(f"What follows? {text}") and not spoken("What follows?", solution=text)  # then it speaks of what it was asked


def test_tries_that_speak_of_it_are_left_out_by_that_name(tmp_path: Path) -> None:
    with bench(
        tmp_path, [hard(1), *map(easy, range(8))], engine=PolicyPlugin(name="test_hints:student", settings={"reply": "speaks"})
    ) as at:
        _, made = round_(at)
    assert not made.survivors and made.pool.solved == 1
    assert made.selection.counts == {f"with a hint: {SPEAKS_OF_IT}": 4, "kept": 0}


# ---------------------------------------------------------------- which tasks, and how many


def test_only_what_was_tried_and_never_passed_is_hinted(tmp_path: Path) -> None:
    """Not what passed, not what broke, not what an earlier round solved."""
    tasks = [hard(1), hard(2), hard(3), easy(1)]
    with bench(tmp_path, tasks) as at:
        pool = at.sample(f"{RUNG}/sampling", Prompted(at.base), tasks, at.sampling)
        broken = {key: Verdict(key=key, outcome="error") for key in pool.tries("hard02")}
        pool = Pool(pool.tasks, pool.wanted, pool.trajectories, {**pool.verdicts, **broken})
        before = [("earlier round", pool.trajectories[pool.tries("hard03")[0]])]
        made = hinted(at, RUNG, Prompted(at.base), pool, before, Hints(share=1, n=3))
    assert {key.task for key in made.pool.wanted} == {"hard01"} and len(made.pool.wanted) == 3
    assert not set(made.pool.wanted) & set(pool.wanted)  # the same task, model and numbers, and other tries
    assert made.selection.counts == {"kept": 1, "with a hint: duplicate": 2}


def test_what_says_how_a_task_is_judged_is_never_shown(tmp_path: Path) -> None:
    tasks = (
        task("nothing", "?"),
        task("tests", "?", reference={"test": "assert f(1) == 2"}),
        task("several", "?", reference=["a", "b"]),
        task("number", "?", reference=42),
        task("words", "?", reference="42"),
        task("gold", "?", reference={"test": "..."}, params={"gold": ["first", "second"]}),
        task("empty", "?", params={"gold": " "}),
    )
    of = TaskSet("made up", tasks, SingleTurn(), FunctionVerifier(right, "right"))
    assert showable(of, tasks) == {"number": "42", "words": "42", "gold": "first\nsecond"}
    assert showable(TaskSet("a pattern", tasks, SingleTurn(), FunctionVerifier(lambda answer, reference: False, "no")), tasks) == {
        "gold": "first\nsecond"
    }
    with bench(tmp_path, [tasks[0]]) as at:
        _, made = round_(at)
        assert (made.unsolved, made.shown, made.pool.wanted, made.selection.counts) == (1, 0, (), {"kept": 0})
        assert not (at.run.folder / RUNG / HINTS).exists()


# share, own tries that train, hinted ones mixed back from earlier rounds, hinted ones that train
SHARES = [
    (0.2, 8, 0, 2),
    (0.2, 7, 0, 1),
    (0.5, 4, 0, 4),
    (0.2, 8, 1, 1),
    (0.2, 8, 9, 0),
    (0, 8, 0, 0),
    (1, 0, 0, 6),
    (0.2, 0, 0, 6),
    (0, 0, 0, 0),
]


def test_hinted_tries_are_at_most_their_share_of_what_trains(tmp_path: Path) -> None:
    with bench(tmp_path, list(map(hard, range(6)))) as at:
        pool = at.sample(f"{RUNG}/sampling", Prompted(at.base), at.tasks.tasks, at.sampling)
        old = Trajectory(key=replace(pool.wanted[0], task="of old"), agent="m", messages=(), stop="done")
        for share, own, before, train in SHARES:
            beside = [("sampled", old)] * own + [("earlier round", replace(old, hint="..."))] * before
            made, again = (hinted(at, RUNG, Prompted(at.base), pool, beside, Hints(share=share)) for _ in range(2))
            assert len(made.survivors) == train and made.selection == again.selection, (share, own, before)
            assert made.selection.counts.get(f"with a hint: {OVER_SHARE}", 0) == 6 - train
            assert sum(made.selection.counts.values()) == len(made.pool.wanted) == 24


# ---------------------------------------------------------------- what goes wrong


def test_a_solution_longer_than_the_context_is_the_policys_failure(tmp_path: Path) -> None:
    tasks = [hard(1, "long " * 200), *map(easy, range(4))]
    with bench(tmp_path, tasks, engine=PolicyPlugin(name="test_hints:student", settings={"context": 400})) as at:
        pool, made = round_(at)
    assert pool.solved == 4 and not made.survivors and made.selection.counts == {"kept": 0, "with a hint: fail: overflow": 4}


def test_the_terms_of_the_solutions_are_asked_before_the_first_token(tmp_path: Path) -> None:
    """A gold answer may be a model's. Who settled that says so for the teacher ``expert``, and it holds for what copies it too."""
    given = TermsSettings(
        teacher="expert",
        licence="OpenAI",
        training="forbidden",
        settled_by="Ann",
        settled_on=datetime.date(2026, 1, 2),
        evidence="https://e.org",
    )
    with bench(tmp_path, [hard(1), easy(1)], permissions=(given,)) as at, pytest.raises(Unsettled, match="'expert'"):
        round_(at)
    assert ASKED and not any(HINT.search(one.messages[-1].content) for one in ASKED)


def test_an_outside_program_is_refused_and_settings_that_make_no_sense(tmp_path: Path) -> None:
    with bench(tmp_path, [hard(1)]) as at:
        pool = at.sample(f"{RUNG}/sampling", Prompted(at.base), at.tasks.tasks, at.sampling)
        at.harness = Harness(command=("true", "{prompt}"))
        with pytest.raises(Refused, match="an outside program writes its own prompts"):
            hinted(at, RUNG, Prompted(at.base), pool, (), Hints())
    for wrong, says in (({"n": 0}, "at least 1"), ({"share": 1.1}, "0 to 1"), ({"wording": "It is known."}, r"\{reference\}")):
        with pytest.raises(SettingsError, match=says):
            Hints(**wrong)  # type: ignore[arg-type]


def test_what_was_stopped_goes_on_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    tasks = [*map(hard, range(5)), *map(easy, range(3))]
    with bench(tmp_path, tasks, meter=Meter(Spending(max_calls=16 + 7))) as at, pytest.raises(Stopped):
        round_(at)
    at.run.close()
    made = len([one for one in ASKED if HINT.search(one.messages[-1].content)])
    assert 0 < made < 20
    with bench(tmp_path, tasks) as at:
        first = round_(at)[1]
        assert len(ASKED) == 20 - made
        assert round_(at)[1].selection == first.selection and len(ASKED) == 20 - made
        assert round_(at, settings=Hints(wording="Psst: {reference}."))[1].pool.wanted != first.pool.wanted  # another hint, other tries
        assert len(ASKED) == 20 - made + 20


# ---------------------------------------------------------------- nothing that counts knows of it


def test_hinted_tries_are_in_no_rate_and_shown_as_what_they_are(tmp_path: Path) -> None:
    with bench(tmp_path, [*map(hard, range(2)), *map(easy, range(8))]) as at:
        pool, made = round_(at)
        good = select(pool, at.selection, at.seed)
        own = [("sampled", pool.trajectories[key]) for key in good.kept]
        rows, selection = build_rows(merge([good, made.selection]), [*own, *made.survivors], load_template(at.base), 1000)
        at.train(RUNG, at.base, rows, selection)
        folder = at.run.folder
        write_json(folder / RUNG / "decision.json", Decision(outcome="keep", action="keep it", reasons=()))
    assert pool.solved == 8 and selection.rows is not None and selection.rows.sources == {"sampled": 8, "hinted": 2}
    (rung,) = read_run(folder).rungs
    assert (rung.newly_solved, rung.kept, rung.hinted) == (8, 8, 2) and rung.sampling is not None and rung.sampling.calls == 20
    assert "with the reference shown 8 calls more, in no rate: 2 kept" in bought(rung)
    views = read_samples(folder, wanted=lambda view: view.trajectory.hint is not None, limit=99)
    assert len(views) == 8 and sum(bool(view.pieces) for view in views) == 2
    assert {view.why.split(",")[0] for view in views} == {"kept: it passed with the reference shown", "left out: with a hint: duplicate"}
    # To be labelled are those that train, and no other of them.
    assert len(tries_in(folder).trajectories) == 22 and len(tries_in(folder).kept or ()) == 10
    trains = (*good.kept, *made.selection.kept)
    write_json(folder / RUNG / "purity.json", RoundPurity(purity=measure(dict.fromkeys(trains, ""), Labels(), BAR), kept=trains))
    assert sum(tries_in(folder).trajectories[key].hint is not None for key in tries_in(folder).kept or ()) == 2


# ---------------------------------------------------------------- games


class Doors:
    """Opens by two commands, told by nobody."""

    name, max_turns = "doors", 3

    async def start(self, task: Task) -> tuple[Episode, tuple[Message, ...]]:
        return _Way(), (Message(role="system", content="You are in a game."), Message(role="user", content="There is a door."))

    def expert(self, task: Task) -> tuple[str | Message, ...] | None:
        return "open door", Message(role="assistant", content="go in")


class _Way:
    tools = ()

    def __init__(self) -> None:
        self.done: list[str] = []

    async def step(self, message: Message) -> Step:
        self.done.append(message.content)
        won = self.done == ["open door", "go in"]
        return Step(messages=(Message(role="user", content="Hm."),), action=message.content, done=won, outcome={"won": won})

    async def close(self) -> None: ...


def plays(conversation: Conversation, rng: random.Random) -> str:
    """The next line of the hint, which must still be there in later turns."""
    found = HINT.search(conversation.messages[1].content)
    at = sum(message.role == "assistant" for message in conversation.messages)
    assert len(conversation.turns) == at
    return found[1].split("\n")[at] if found else "wait"


REPLIES["plays"] = plays


def test_a_game_is_replayed_by_its_solution_and_trains_every_turn(tmp_path: Path) -> None:
    game = Task(key="game", family="game", split="train")
    engine = PolicyPlugin(name="test_hints:student", settings={"reply": "plays"})
    with bench(tmp_path, [game], Doors(), EnvironmentOutcome(), engine=engine) as at:
        _, made = round_(at, settings=Hints(share=1))
        ((_, one),) = made.survivors
        (row,), _ = build_rows(made.selection, made.survivors, load_template(at.base), 1000)
    assert [message.content for message in one.messages] == ["You are in a game.", "There is a door.", "open door", "Hm.", "go in", "Hm."]
    assert one.outcome == {"won": True} and one.actions == ("open door", "go in")
    assert [text for text, learnt in pieces(row, load_template(at.base)) if learnt] == [f"open door{END}", f"go in{END}"]


# ---------------------------------------------------------------- the real model


@pytest.mark.real
def test_the_real_model_solves_with_the_solution_in_view_what_it_never_did(tmp_path: Path) -> None:
    sums = ReasoningGym(
        dataset="chain_sum", config={"min_terms": 4, "max_terms": 4, "min_digits": 3, "max_digits": 3}, splits=Splits(train=8)
    )
    base, settings = load_model("smollm2-135m-instruct"), SamplingSettings(n=2, max_tokens=48)
    with Bench(run=Run.open(tmp_path / "run", "name: run\n"), tasks=load_tasks(sums), base=base, sampling=settings) as at:
        pool, made = round_(at, settings=Hints(share=1))
        template = load_template(base)
        rows, selection = build_rows(made.selection, made.survivors, template, 1000)
    assert made.unsolved == made.shown == 8 - pool.solved and made.pool.solved > 0
    assert rows and selection.rows is not None and selection.rows.sources == {"hinted": len(made.survivors)}
    for row in rows:
        prompt = template.prompt(made.pool.tasks[row.key.task].prompt)
        assert list(row.input_ids[: len(prompt)]) == prompt  # token by token what it will be asked
        assert not any(label != -100 for label in row.labels[: len(prompt)]) and row.labels[-1] in template.end_ids
