"""The property tests that are shipped for authors: the project's own parts pass them, and each property catches a part that breaks it."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace

from sharpen import loop
from sharpen.environments.base import Step
from sharpen.environments.object import Object, object_environment
from sharpen.environments.single_turn import SingleTurn
from sharpen.environments.tools import Limits, ToolEnvironment, function_tools
from sharpen.errors import ContextOverflow, EnvironmentFault
from sharpen.policies.base import Conversation, Sampling, Turn
from sharpen.policies.endpoint import Endpoint, EndpointPolicy
from sharpen.policies.scripted import Scripted, ScriptedPolicy
from sharpen.records import Message, Task, Trajectory, TurnTokens, Verdict
from sharpen.tasks import reasoning_gym
from sharpen.tasks.base import Splits, TaskSet
from sharpen.tasks.reasoning_gym import ReasoningGym
from sharpen.testing import check_environment, check_policy, check_task_source, check_verifier
from sharpen.verifiers.function import FunctionVerifier
from sharpen.verifiers.outcome import EnvironmentOutcome


def task(number: int, split: str = "train", **fields: Any) -> Task:
    text = Message(role="user", content=f"What is {number} + 1?")
    answer = str(number + 1)
    return replace(
        Task(key=f"t{number}", family=str(number), split=split, prompt=(text,), params={"gold": answer}, reference=answer), **fields
    )


TASKS = tuple(task(number, split) for number, split in enumerate(["train", "train", "dev"]))


def copies() -> list[Task]:
    return [replace(task, params=dict(task.params)) for task in TASKS]


def same(answer: str, reference: str) -> bool:
    return answer.strip() == reference


# ---------------------------------------------------------------- the project's own parts


def add(a: int, b: int) -> int:
    """Add two whole numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


COUNTER = """
    class Counter:
        def reset(self, number):
            self.total = 0
            self.wanted = number + 1
            return f"Press until it says {number + 1}."

        def press(self, times: int) -> str:
            '''Press the button.

            Args:
                times: How often.
            '''
            self.total += times
            return f"It says {self.total}."

        def get_reward(self):
            return float(self.total == self.wanted)

    def expert(task):
        number = task.params["number"] + 1
        return [{"tool_calls": [{"name": "press", "arguments": {"times": number}}]}, "Done."]
"""


def toolbox() -> ToolEnvironment:
    box = function_tools([add])  # imports transformers, which may take longer than a step may

    @asynccontextmanager
    async def open_(task: Task) -> Any:
        yield box

    return ToolEnvironment("tools", open_, Limits(max_turns=4))


@pytest.fixture
def counter(tmp_path: Path) -> TaskSet:
    """A TRL class as an environment, judged by its own word."""
    (tmp_path / "counter.py").write_text(textwrap.dedent(COUNTER))
    played = object_environment(
        Object(factory=f"{tmp_path / 'counter.py'}:Counter", expert=f"{tmp_path / 'counter.py'}:expert", max_turns=3)
    )
    tasks = tuple(task(n, split, params={"number": n}) for n, split in enumerate(["train", "train", "dev"]))
    return TaskSet("counter", tasks, played, EnvironmentOutcome())


def test_shipped_verifiers(counter: TaskSet) -> None:
    check_verifier(same, TASKS, examples=20)
    check_verifier(FunctionVerifier(lambda answer, reference: float(answer == reference), "close", threshold=0.5), TASKS, examples=20)
    check_verifier(EnvironmentOutcome(), counter, examples=20)


def test_shipped_environments(counter: TaskSet) -> None:
    check_environment(SingleTurn(), TASKS)
    check_environment(toolbox(), TASKS, examples=20)
    check_environment(counter.environment, counter, examples=20)


def test_a_shipped_task_source_with_its_parts() -> None:
    settings = ReasoningGym(dataset="chain_sum", splits=Splits(train=6, dev=4), seed=3)
    made = check_task_source(reasoning_gym.load, {"settings": settings})
    check_environment(made.environment, made, examples=10)
    check_verifier(made.verifier, made, examples=10)  # type: ignore[arg-type]  # it has one


def words(conversation: Conversation, rng: random.Random) -> str:
    return " ".join(str(rng.randrange(1000)) for _ in range(3))


def test_shipped_policies() -> None:
    scripted = ScriptedPolicy(words, settings=Scripted(context=20_000))
    check_policy(scripted, template=scripted.template)
    check_policy(lambda: ScriptedPolicy(lambda conversation, rng: conversation.messages[-1].content))


@pytest.fixture
def url() -> Iterator[str]:
    """A server of the scripted policy, text only, on loopback."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        asked = Conversation(messages=tuple(Message(role=m["role"], content=m["content"]) for m in body["messages"]))
        sampling = Sampling(**{key: body[key] for key in ("temperature", "top_p", "max_tokens", "seed")})
        turn = await ScriptedPolicy(words).complete(asked, sampling)
        choice = {"message": {"role": "assistant", "content": turn.message.content}, "finish_reason": turn.tokens.stop}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": turn.sampled_tokens}})

    async def start() -> tuple[web.AppRunner, str]:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    runner, address = loop.run(start())
    yield address
    loop.run(runner.cleanup())


def test_a_shipped_endpoint(url: str) -> None:
    check_policy(lambda: EndpointPolicy(Endpoint(base_url=url, model="m", retries=0)), examples=5)


# ---------------------------------------------------------------- verifiers that break a property


class Judge:
    """A right verifier, but for what a test changes."""

    name: Any = "mine"
    exact: Any = True

    def __init__(self, **changed: Any) -> None:
        self.__dict__.update(changed)

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        return self.says(task, trajectory)  # type: ignore[attr-defined, no-any-return]


def verdict(good: bool, trajectory: Trajectory, **fields: Any) -> Verdict:
    return Verdict(key=trajectory.key, outcome="pass" if good else "fail", **fields)


def right(task: Task, trajectory: Trajectory) -> bool:
    return trajectory.messages[-1].content == task.reference


def seen_before() -> Callable[..., bool]:
    seen: set[str] = set()

    def grade(answer: str, reference: str) -> bool:
        known = answer in seen
        seen.add(answer)
        return answer == reference or (known and answer == "NaN")

    return grade


def tired(after: int) -> Callable[..., bool]:
    asked: list[str] = []

    def grade(answer: str, reference: str) -> bool:
        asked.append(answer)
        return answer == reference and len(asked) < after

    return grade


def not_side_by_side() -> Callable[..., bool]:
    inside: list[int] = []
    met = threading.Event()

    def grade(answer: str, reference: str) -> bool:
        inside.append(1)
        if len(inside) > 1:
            met.set()
        elif any(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate()):
            met.wait(10)  # for another
        inside.pop()
        return answer == reference and not met.is_set()

    return grade


def changes_the_task(task: Task, trajectory: Trajectory) -> bool:
    task.params["judged"] = task.params.get("judged", 0) + 1
    return right(task, trajectory)


HUNG, FREED = threading.Event(), threading.Event()


def hangs(answer: str, reference: str) -> bool:
    if "/" in answer:
        HUNG.set()
        FREED.wait()
    return answer == reference


def join(thread: threading.Thread, timeout: float | None = None, *, whole: Any = threading.Thread.join) -> None:
    """Waits for a thread, and not at all for one that hangs."""
    while thread.is_alive() and not HUNG.is_set():
        whole(thread, 0.001)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time limit is over when ``hangs`` hangs, not before."""
    HUNG.clear()
    FREED.clear()
    monkeypatch.setattr(threading.Thread, "join", join)
    yield
    FREED.set()


BROKEN_VERIFIERS: dict[str, tuple[Callable[[], Any], str]] = {
    "no name": (lambda: Judge(name=""), "it has a name"),
    "exact is a word": (lambda: Judge(exact="yes"), "exact is a bool"),
    "no verify": (lambda: object(), "it is a Verifier or a function: it has no name, exact, verify"),
    "passes anything": (lambda: lambda answer, reference: True, "empty and off-task answers fail: task 't0': an empty answer got pass"),
    "fails the gold": (lambda: lambda answer, reference: False, "gold solutions pass.*the gold solution '1' got fail"),
    "raises on text": (lambda: lambda answer, reference: int(answer or 0) == int(reference) if answer[:1] != "I" else False, "makes it raise"),
    "raises on deep JSON": (
        lambda: lambda answer, reference: answer == reference or (answer.startswith("[") and json.loads(answer) == reference),
        "no answer makes it raise.*RecursionError",
    ),
    "raises on generated text": (
        lambda: lambda answer, reference: answer == reference or (reference in answer and "e999" not in answer and "{" not in answer and 1 / 0 > 0),
        "no answer makes it raise.*ZeroDivisionError",
    ),
    "raises without an answer": (
        lambda: Judge(says=lambda t, y: verdict([m for m in y.messages if m.role == "assistant"][-1].content == t.reference, y)),
        "no answer makes it raise.*IndexError",
    ),
    "passes without an answer": (
        lambda: Judge(says=lambda t, y: verdict(right(t, y) or y.messages[-1].role == "user", y)), "without an answer does not pass"
    ),
    "hangs": (lambda: hangs, "no answer makes it raise, hang.*not back after 0.3 s"),
    "says error": (
        lambda: Judge(says=lambda t, y: replace(verdict(right(t, y), y), outcome="error" if "{" in y.messages[-1].content else "fail")
                      if not right(t, y) else verdict(True, y)),
        "or give an error",
    ),
    "keeps state": (lambda: seen_before(), "the same input gives the same verdict twice.*NaN"),
    "grows tired": (lambda: tired(60), "whatever was judged before: task 't0': pass, then fail"),
    "not for threads": (lambda: not_side_by_side(), "many threads at once"),
    "another key": (
        lambda: Judge(says=lambda t, y: replace(verdict(right(t, y), y), key=replace(y.key, index=77))), "carries its trajectory's key"
    ),
    "NaN": (lambda: Judge(says=lambda t, y: verdict(right(t, y), y, score=float("nan"))), "score nan, which is no finite number"),
    "changes the task": (lambda: changes_the_task, "task and trajectory are left as they were"),
    "any number passes": (
        lambda: lambda answer, reference: answer.isdecimal() and len(answer) < 9,
        "another task's gold solution fails.*task 't0' passes '2', the gold solution of 't1'",
    ),
}  # fmt: skip


def one_line(caught: pytest.ExceptionInfo[AssertionError]) -> bool:
    return "\n" not in str(caught.value) and len(str(caught.value)) < 1200


@pytest.mark.parametrize("name", BROKEN_VERIFIERS)
def test_a_broken_verifier_is_caught(name: str, request: pytest.FixtureRequest) -> None:
    make, why = BROKEN_VERIFIERS[name]
    if name == "hangs":
        request.getfixturevalue("impatient")
    with pytest.raises(AssertionError, match=why) as caught:
        check_verifier(make(), copies(), timeout_s=0.3 if name == "hangs" else 60.0)
    assert one_line(caught) and str(caught.value).startswith("verifier ")


def test_what_a_verifier_check_may_be_told() -> None:
    def number(answer: str, reference: str) -> bool:
        return answer.isdecimal() and len(answer) < 9

    check_verifier(number, TASKS, one_answer=False, examples=5)
    with pytest.raises(AssertionError, match="no task outside the split test has a gold solution"):
        check_verifier(same, [replace(task, params={}) for task in TASKS])


# ---------------------------------------------------------------- environments that break a property


class Guess:
    """A right environment, guess the number, but for what a test changes."""

    def __init__(self, **changed: Any) -> None:
        self.name: Any = "guess"
        self.max_turns: Any = 4
        self.changed = changed
        self.shared: list[str] = []
        self.__dict__.update({name: value for name, value in changed.items() if name in ("name", "max_turns")})

    async def start(self, task: Task) -> Any:
        opening = self.changed.get("opening", lambda task: task.prompt)(task)
        return GuessEpisode(self, task), opening

    def expert(self, task: Task) -> Any:
        return self.changed.get("expert", lambda task: ("0", task.reference))(task)


class GuessEpisode:
    def __init__(self, made: Guess, task: Task) -> None:
        self.made, self.task, self.said = made, task, list[str]()
        self.tools = made.changed.get("tools", ())
        self.closed = 0

    async def step(self, message: Message) -> Any:
        if "step" in self.made.changed and (step := self.made.changed["step"](self, message)) is not None:
            return await step if asyncio.iscoroutine(step) else step
        self.said.append(message.content)
        won = message.content == self.task.reference
        told = () if won else (Message(role="user", content=f"No. {len(self.said)} tried."),)
        return Step(messages=told, action=message.content, done=won, outcome={"won": won})

    async def close(self) -> None:
        self.closed += 1
        self.made.changed.get("close", lambda episode: None)(self)


def hint(text: str, done: bool = False, **fields: Any) -> Step:
    return Step(messages=(Message(role="user", content=text),), done=done, **fields)


def remembers(episode: GuessEpisode, message: Message) -> Step:
    episode.made.shared.append(message.content)
    return hint(f"{len(episode.made.shared)} tried")


def one_board(episode: GuessEpisode, message: Message) -> Step:
    if not episode.said:
        episode.made.shared.clear()  # a new game wipes the board, also under a game in progress
    episode.said.append(message.content)
    return remembers(episode, message)


def closes_all(episode: GuessEpisode) -> None:
    episode.made.shared.append("closed")


def open_before(episode: GuessEpisode, message: Message) -> Step:
    if not episode.said:
        episode.made.shared.clear()
    episode.said.append("")
    return hint("open" if not episode.made.shared else "closed by another")


def broken_close(episode: GuessEpisode) -> None:
    if episode.closed > 1:
        raise ValueError("already closed")


def uses_up(episode: GuessEpisode, message: Message) -> None:
    episode.task.params["gold"] = "used up"


def noise() -> Callable[..., Any]:
    numbers = iter(range(10**9))
    return lambda *_: next(numbers)


SCHEMA = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object", "properties": {"at": {}}}}}

BROKEN_ENVIRONMENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "no start": (lambda: object(), "it is an Environment: it has no name, max_turns, start, expert"),
    "no turns": (lambda: Guess(max_turns=0), "max_turns of 1 or more"),
    "cannot start": (lambda: Guess(opening=lambda task: 1 / 0), "every task starts: task 't0': ZeroDivisionError"),
    "opens with a list": (lambda: Guess(opening=lambda task: list(task.prompt)), "an opening is a tuple of messages"),
    "opens with the assistant": (
        lambda: Guess(opening=lambda task: (*task.prompt, Message(role="assistant", content="1"))),
        "does not end with an assistant message",
    ),
    "opens otherwise": (lambda: (lambda next_: Guess(opening=lambda t: (Message(role="user", content=f"Game {next_()}"),)))(noise()),
                        "twice with the same opening"),
    "schemas": (lambda: Guess(tools=({"name": "look"},)), "JSON in OpenAI's form"),
    "schemas not JSON": (lambda: Guess(tools=({**SCHEMA, "strict": {1, 2}},)), "JSON in OpenAI's form"),
    "tools of one name": (lambda: Guess(tools=(SCHEMA, SCHEMA)), "each tool has a name of its own"),
    "expert raises": (lambda: Guess(expert=lambda task: task.params["way"]), "the expert does not raise: task 't0': KeyError"),
    "expert wavers": (lambda: (lambda next_: Guess(expert=lambda task: (str(next_()),)))(noise()), "the same turns twice"),
    "expert is empty": (lambda: Guess(expert=lambda task: ()), "a tuple of texts and assistant messages"),
    "expert is a string": (lambda: Guess(expert=lambda task: task.reference), "a tuple of texts and assistant messages"),
    "expert fails": (lambda: Guess(expert=lambda task: ("no",)), "the expert reaches an end: task 't0': no end after 'no'"),
    "expert is too slow": (lambda: Guess(expert=lambda task: (*"9999", task.reference)), "reaches an end.*max_turns 4"),
    "raises on text": (lambda: Guess(step=lambda episode, message: (int(message.content), None)[1]), "anything but EnvironmentFault.*ValueError"),
    "raises on calls": (
        lambda: Guess(tools=(SCHEMA,), step=lambda e, m: hint(str([json.loads(c.arguments) for c in m.tool_calls])) if m.tool_calls else None),
        "no turn raises anything but EnvironmentFault.*JSONDecodeError",
    ),
    "raises on arguments": (
        lambda: Guess(
            tools=(SCHEMA,),
            step=lambda e, m: hint("ok") if any(c.name == "look" and c.arguments == '{"at": null}' and 1 / 0 for c in m.tool_calls) else None,
        ),
        "no turn raises anything but EnvironmentFault.*look.*at.*null.*ZeroDivisionError",
    ),
    "hangs": (lambda: Guess(step=lambda episode, message: asyncio.sleep(5)), "not back after 0.5 s"),
    "blocks": (lambda: Guess(step=lambda episode, message: time.sleep(1)), "not back after 0.5 s"),
    "no Step": (lambda: Guess(step=lambda episode, message: ("said", False)), "a step is a Step"),
    "step not JSON": (lambda: Guess(step=lambda episode, message: hint("x", outcome={"left": {1, 2}})), "survives a JSON round trip"),
    "silent": (lambda: Guess(step=lambda episode, message: Step() if message.content == "NaN" else None), "says something"),
    "random": (lambda: (lambda next_: Guess(step=lambda e, m: hint(str(next_())) if m.content == "" else None))(noise()), "same steps twice"),
    "shared state": (lambda: Guess(expert=lambda task: None, step=remembers), "the same turns give the same steps twice"),
    "one board for all": (lambda: Guess(expert=lambda task: None, step=one_board), "two episodes played in turns do not disturb each other"),
    "closes others": (lambda: Guess(expert=lambda task: None, step=open_before, close=closes_all), "do not disturb each other.*closed by another"),
    "changes the task": (lambda: Guess(step=uses_up), "tasks are left as they were: task 't0'"),
    "closes once": (lambda: Guess(close=broken_close), "closing twice is harmless: task 't0': ValueError"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_ENVIRONMENTS)
def test_a_broken_environment_is_caught(name: str) -> None:
    make, why = BROKEN_ENVIRONMENTS[name]
    with pytest.raises(AssertionError, match=why) as caught:
        check_environment(make(), copies(), timeout_s=0.5 if name in ("hangs", "blocks") else 30.0)
    assert one_line(caught) and str(caught.value).startswith("environment ")


def test_an_environment_may_have_faults() -> None:
    def sometimes(episode: GuessEpisode, message: Message) -> None:
        if len(message.content) > 1000:
            raise EnvironmentFault("the server gave up")

    check_environment(Guess(), TASKS)
    check_environment(Guess(step=sometimes, tools=(SCHEMA,)), TASKS, examples=20)


# ---------------------------------------------------------------- task sources that break a property


def made(tasks: Any = TASKS, name: str = "mine") -> TaskSet:
    return TaskSet(name, tuple(tasks), SingleTurn(), FunctionVerifier(same))


BROKEN_SOURCES: dict[str, tuple[Callable[..., Any], str]] = {
    "no TaskSet": (lambda: list(TASKS), "it gives a sound TaskSet: gave list, not a TaskSet"),
    "raises": (lambda: 1 / 0, "it does not raise: ZeroDivisionError"),
    "no split": (lambda: made([task(1, "")]), "task 't1' has the split ''"),
    "twice a key": (lambda: made([task(1), replace(task(2), key="t1")]), "holds the key 't1' twice"),
    "a family straddles": (lambda: made([task(1), task(2, "dev", family="1")]), "share family '1'"),
    "a question straddles": (lambda: made([task(1), replace(task(1, "test"), key="x", family="x")]), "share the question"),
    "random": (lambda: made([task(random.randrange(10**9))]), "calling it twice gives equal tasks: task 't\\d+': key"),
    "random order": (lambda: made(random.sample([task(n) for n in range(50)], 50)), "calling it twice gives equal tasks"),
    "random number": (
        lambda: made([task(n) for n in range(next(COUNTS))]),
        "calling it twice gives equal tasks: task 't1' is there only once",
    ),
    "random name": (lambda: made(name=str(random.random())), "gives the same names"),
    "tuples": (lambda: made([task(1, params={"size": (3, 4)})]), "tasks survive a JSON round trip: task 't1'"),
    "not JSON": (lambda: made([task(1, params={"seen": object()})]), "task 't1' cannot be written as JSON"),
}
COUNTS = iter((1, 2))


@pytest.mark.parametrize("name", BROKEN_SOURCES)
def test_a_broken_task_source_is_caught(name: str) -> None:
    make, why = BROKEN_SOURCES[name]
    with pytest.raises(AssertionError, match=why) as caught:
        check_task_source(make)
    assert one_line(caught) and str(caught.value).startswith("task source ")


def test_near_duplicates_on_request() -> None:
    long = "one two three four five six seven eight nine ten eleven twelve"
    tasks = [replace(task(n, s), prompt=(Message(role="user", content=f"{long} {n}"),)) for n, s in enumerate(["train", "dev"])]
    check_task_source(lambda: made(tasks))
    with pytest.raises(AssertionError, match="nearly a teaching one"):
        check_task_source(lambda: made(tasks), max_overlap=0.5)


def test_a_source_by_name_is_also_called_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "sets.py"
    path.write_text(
        textwrap.dedent("""
        from sharpen import Message, Task, TaskSet
        from sharpen.environments.single_turn import SingleTurn

        def tasks(words):
            given = (Task(key=w, family=w, split="train", prompt=(Message(role="user", content=w),)) for w in words)
            return TaskSet("words", tuple(given), SingleTurn(), None)

        def listed(words): return tasks(words)
        def unordered(words): return tasks(set(words))
        """)
    )
    words = {"words": [f"word {n}" for n in range(20)]}
    assert len(check_task_source(f"{path}:listed", words)) == 20
    with pytest.raises(AssertionError, match="another process gives equal tasks"):
        check_task_source(f"{path}:unordered", words)
    with pytest.raises(AssertionError, match="has no setting 'wrds'; did you mean 'words'"):
        check_task_source(f"{path}:listed", {"wrds": []})


# ---------------------------------------------------------------- policies that break a property


class Wrapped:
    """The scripted policy, but for what a test changes: ``before(conversation, sampling)`` may raise, ``after(turn, sampling)`` gives another turn."""

    def __init__(self, **changed: Any) -> None:
        self._inner = ScriptedPolicy(lambda conversation, rng: f"{rng.random()} and so on")
        self.name: Any = "mine"
        self.gives_token_ids: Any = True
        self.closed = 0
        self.__dict__.update(changed)

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Any:
        if "before" in self.__dict__:
            waits = self.__dict__["before"](self, conversation, sampling)
            if asyncio.iscoroutine(waits):
                await waits
        turn = await self._inner.complete(conversation, self.__dict__.get("sampling", sampling))
        return self.__dict__.get("after", lambda policy, turn: turn)(self, turn)

    async def close(self) -> None:
        self.closed += 1
        if "closing" in self.__dict__:
            self.__dict__["closing"](self)


def fails_if(found: Callable[[str], bool], error: type[Exception]) -> Callable[..., None]:
    def before(policy: Wrapped, conversation: Conversation, sampling: Sampling) -> None:
        if found(conversation.messages[-1].content):
            raise error("no")

    return before


async def one_engine(policy: Wrapped, conversation: Conversation, sampling: Sampling) -> None:
    """An engine with room for one, which a cancelled call leaves taken."""
    while policy.__dict__.get("taken"):
        await asyncio.sleep(0.001)
    policy.__dict__["taken"] = True
    await asyncio.sleep(0.1 if sampling.max_tokens == 256 else 0)
    policy.__dict__["taken"] = False


def others(policy: Wrapped, conversation: Conversation, sampling: Sampling) -> Any:
    """Answers with how many calls are in flight."""

    async def wait() -> None:
        policy.__dict__["inside"] = policy.__dict__.get("inside", 0) + 1
        await asyncio.sleep(0)
        policy.__dict__["most"] = policy.__dict__["inside"]
        await asyncio.sleep(0)
        policy.__dict__["inside"] -= 1

    return wait()


def closes_once(policy: Wrapped) -> None:
    if policy.closed > 1:
        raise RuntimeError("already closed")


def text(turn: Turn, content: str) -> Turn:
    return replace(turn, message=replace(turn.message, content=content))


BROKEN_POLICIES: dict[str, tuple[Callable[[], Any], str]] = {
    "no complete": (lambda: SingleTurn(), "it is a Policy: it has no gives_token_ids, complete, close"),
    "no name": (lambda: Wrapped(name=""), "it has a name"),
    "ids maybe": (lambda: Wrapped(gives_token_ids=None), "gives_token_ids is a bool"),
    "no Turn": (lambda: Wrapped(after=lambda policy, turn: turn.message.content), "a call gives a Turn"),
    "says it as the user": (
        lambda: Wrapped(after=lambda policy, turn: replace(turn, message=Message(role="user", content="?"))), "an assistant's message"
    ),
    "never fits": (lambda: Wrapped(before=fails_if(lambda text: True, ContextOverflow)), "a short question is answered"),
    "ignores max_tokens": (lambda: Wrapped(sampling=Sampling(max_tokens=99)), "max_tokens is held: asked .*, max_tokens 1: \\d+ were sampled"),
    "hides its ids": (
        lambda: Wrapped(after=lambda policy, turn: replace(turn, tokens=TurnTokens())), "token ids are there where it says that it gives them"
    ),
    "denies its ids": (lambda: Wrapped(gives_token_ids=False), "token ids are there where it says"),
    "miscounts": (lambda: Wrapped(after=lambda policy, turn: replace(turn, sampled_tokens=0)), "as many token ids as it counts"),
    "says something else": (lambda: Wrapped(after=lambda policy, turn: text(turn, "hello")), "the message is what the template reads"),
    "raises on text": (lambda: Wrapped(before=fails_if(lambda text: "\x00" in text, ValueError)), "anything but ContextOverflow.*ValueError"),
    "raises on generated text": (
        lambda: Wrapped(before=fails_if(lambda text: len(text) == 1, ValueError)), "anything but ContextOverflow.*ValueError"
    ),
    "random": (lambda: (lambda next_: Wrapped(after=lambda p, turn: text(turn, str(next_()))))(noise()), "the same seed gives the same turn twice"),
    "disturbed by others": (
        lambda: Wrapped(before=others, after=lambda policy, turn: text(turn, str(policy.most))), "also among other calls"
    ),
    "broken by a cancelled call": (lambda: Wrapped(before=one_engine), "a cancelled call does not break the next one"),
    "hangs": (lambda: Wrapped(before=lambda *_: asyncio.sleep(9)), "not back after 0.3 s"),
    "closes once": (lambda: Wrapped(closing=closes_once), "closing twice is harmless: RuntimeError"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_POLICIES)
def test_a_broken_policy_is_caught(name: str) -> None:
    make, why = BROKEN_POLICIES[name]
    template = ScriptedPolicy(words).template if name == "says something else" else None
    with pytest.raises(AssertionError, match=why) as caught:
        check_policy(make(), template=template, timeout_s={"hangs": 0.3, "broken by a cancelled call": 3}.get(name, 60))
    assert one_line(caught) and str(caught.value).startswith("policy ")


def test_a_policy_that_cannot_repeat_itself() -> None:
    counter = noise()
    check_policy(Wrapped(after=lambda policy, turn: text(turn, str(counter()))), deterministic=False)


# ---------------------------------------------------------------- without hypothesis


def test_what_to_install_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sharpen.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"pip install 'sharpen\[testing\]'") as caught:
        import sharpen.testing.verifier  # noqa: F401
    assert "\n" not in str(caught.value)
