"""Outside programs as agents: each one here is a real process that talks HTTP. None outlives its try, and nothing it does costs another try."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from conftest import later, runs, wait_until
from sharpen.agents import proxy
from sharpen.agents.harness import Harness, HarnessAgent
from sharpen.agents.proxy import Calls, serve
from sharpen.chat.masks import UNSAMPLED, pieces, rows
from sharpen.chat.scripted import ScriptedTemplate
from sharpen.errors import EnvironmentFault, PolicyError, SettingsError
from sharpen.policies.base import Conversation, Sampling, Turn
from sharpen.policies.scripted import Scripted, ScriptedPolicy
from sharpen.records import Message, Task, Trajectory, TurnTokens, Verdict
from sharpen.sampling import fill
from sharpen.store.segments import Segments
from sharpen.verifiers.function import FunctionVerifier, answer_of
from sharpen.verifiers.run import judge

ROOT = Path(__file__).parent.parent

ASK = """
import json, os, sys, time, urllib.error, urllib.request
def ask(messages, **more):
    body = more.pop("raw", None) or json.dumps({"model": os.environ["OPENAI_MODEL"], "messages": messages, **more}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, {"Content-Type": "application/json"})
    try:
        return json.load(urllib.request.urlopen(request))["choices"][0]["message"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]
def user(text): return {"role": "user", "content": text}
"""


def task(text: str = "Calculate 1 + 1.", key: str = "t") -> Task:
    return Task(key=key, family=key, prompt=(Message(role="user", content=text),))


def echo(conversation: Conversation, rng: random.Random) -> str:
    """Numbered by the turn, so that every answer differs."""
    return f"{sum(m.role == 'assistant' for m in conversation.messages) + 1}: {conversation.messages[-1].content[:40]}"


def agent(program: str, policy: Any = None, max_tokens: int = 64, **more: Any) -> HarnessAgent:
    harness = Harness(command=(sys.executable, "-c", ASK + program, "{prompt}"), **{"timeout_s": 600.0, **more})
    return HarnessAgent("outside", policy or ScriptedPolicy(echo), "m", harness, Sampling(max_tokens=max_tokens))


async def play(program: str, *args: Any, text: str = "Calculate 1 + 1.", **more: Any) -> Trajectory:
    return await agent(program, *args, **more).run(task(text), 0)


THREE_TURNS = """
messages = [{"role": "system", "content": "be brief"}, user(sys.argv[1])]
for turn in range(3):
    answer = ask(messages)
    messages += [{"role": "assistant", "content": answer["content"]}, user(f"go on {turn}")]
print("banner"); print(answer["content"])
"""


async def test_a_whole_try_its_ids_end_up_in_one_training_row_unchanged() -> None:
    made = await play(THREE_TURNS)
    assert (made.stop, made.cost.turns, made.outcome["exit"]) == ("done", 3, 0)
    assert made.outcome["answer"] == "banner\n3: go on 1" == answer_of(made)
    assert [m.role for m in made.messages] == ["system", *["user", "assistant"] * 3]
    assert made.actions == ("1: Calculate 1 + 1.", "2: go on 0", "3: go on 1")
    template = ScriptedTemplate()
    (row,), problem = rows(made, template, "sampled", 10_000)
    assert problem is None and row.origin == "sampled"
    assert row.input_ids == (*(made.turns[-1].prompt or ()), *(made.turns[-1].output or ()))
    learnt = [text for text, trained in pieces(row, template) if trained]
    assert learnt == [f"{action}<|end|>" for action in made.actions]
    assert msgspec.json.decode(msgspec.json.encode(made), type=Trajectory) == made


async def test_many_at_once_are_told_apart(tmp_path: Path) -> None:
    tasks = [task(f"number {i}", f"t{i}") for i in range(6)]
    first = ScriptedPolicy(lambda c, r: f"{next(m.content for m in c.messages if m.role == 'user')} {len(c.messages)}")
    player = agent(THREE_TURNS, first)
    trajectories, verdicts = Segments(tmp_path / "t", Trajectory), Segments(tmp_path / "v", Verdict)
    pool = await fill(player, tasks, range(2), None, trajectories, verdicts, concurrency=6)
    assert len(pool.trajectories) == 12
    for key, made in pool.trajectories.items():
        number = key.task[1:]
        assert made.actions == tuple(f"number {number} {length}" for length in (2, 4, 6))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_a_shell_script_that_reads_the_prompt_from_stdin() -> None:
    script = """
    read -r line
    curl -s "$OPENAI_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" -H 'Content-Type: application/json' \
      -d "{\\"model\\": \\"$OPENAI_MODEL\\", \\"messages\\": [{\\"role\\": \\"user\\", \\"content\\": \\"$line\\"}]}" | grep -o '"content":"[^"]*"'
    pwd; env >&2; exit 3"""
    harness = Harness(command=("sh", "-c", script), prompt_by="stdin", env={"MINE": "{model} {nothing}"})
    os.environ["SECRET_API_KEY"] = "do not leak"
    try:
        made = await HarnessAgent("sh", ScriptedPolicy(echo), "m", harness, Sampling(max_tokens=64)).run(task("what now"), 0)
    finally:
        del os.environ["SECRET_API_KEY"]
    assert made.actions == ("1: what now",)
    assert made.stop == "crashed" and made.outcome["exit"] == 3 and made.outcome["answer"] == ""
    assert made.outcome["stdout"].startswith('"content":"1: what now"\n')
    seen = dict(line.split("=", 1) for line in made.outcome["stderr"].splitlines() if "=" in line)
    allowed = {"PATH", "LANG", "HOME", "TMPDIR", "OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL", "MINE"}
    assert set(seen) <= allowed | {"PWD", "OLDPWD", "SHLVL", "_"}
    assert seen["MINE"] == "scripted {nothing}"
    work = Path(made.outcome["stdout"].splitlines()[-1])
    assert work.name == "work" and not work.exists() and not Path(seen["HOME"]).exists()


async def test_the_prompt_by_file_and_placeholders_inside_a_prompt_stay_as_they_are() -> None:
    harness = Harness(
        command=(sys.executable, "-c", ASK + "print(ask([user(open(sys.argv[1]).read())]))", "{prompt_file}"), prompt_by="file"
    )
    odd = "naïve {base_url} {prompt} $(id) \N{PILE OF POO}"
    made = await HarnessAgent("f", ScriptedPolicy(echo), "m", harness, Sampling()).run(task(odd), 0)
    assert made.messages[0].content == odd
    assert (await play("ask([user(sys.argv[1])])", text=odd)).messages[0].content == odd


# ---------------------------------------------------------------- history


async def test_a_rewritten_history_and_a_sub_agent_are_threads_and_every_call_trains_once() -> None:
    made = await play("""
messages = [user("start")]
for turn in range(3):
    answer = ask(messages)
    if turn == 1:
        ask([{"role": "system", "content": "you are a sub-agent"}, user("look this up")])
    messages += [{"role": "assistant", "content": answer["content"]}, user(f"go on {turn}")]
messages = [user("start"), user("summary: three turns passed"), ]
ask(messages)
""")
    assert made.stop == "done" and len(made.turns) == 3 and [len(t.turns) for t in made.threads] == [1, 1]
    assert [m.content for m in made.threads[0].messages] == ["you are a sub-agent", "look this up", "1: look this up"]
    assert made.threads[1].messages[1].content.startswith("summary")
    made_rows, problem = rows(made, ScriptedTemplate(), "sampled", 10_000)
    assert problem is None and len(made_rows) == 3
    trained = [label for row in made_rows for label in row.labels if label != -100]
    assert len(trained) == made.cost.sampled_tokens
    assert sorted(trained) == sorted(token for part in (made, *made.threads) for t in part.turns for token in t.output or ())


async def test_a_branch_shares_its_beginning_and_trains_it_once() -> None:
    made = await play("""
first = [user("a")]
answer = ask(first)
base = [*first, {"role": "assistant", "content": answer["content"]}]
ask([*base, user("left")]); ask([*base, user("right")])
""")
    assert [len(made.turns), *(len(t.turns) for t in made.threads)] == [2, 1]
    made_rows, _ = rows(made, ScriptedTemplate(), "sampled", 10_000)
    assert [sum(label == 256 for label in row.labels) for row in made_rows] == [2, 1]
    assert made_rows[1].input_ids[: len(made.turns[0].prompt or ())] == made.turns[0].prompt


async def test_an_answer_asked_for_again_is_another_one_and_the_unused_one_trains_nothing() -> None:
    policy = ScriptedPolicy(lambda c, r: f"draw {r.random()}")
    program = """
one = ask([user("a")])
two = ask([user("a")])
ask([user("a"), {"role": "assistant", "content": two["content"]}, user("b")])
"""
    made = await play(program, policy)
    assert len(made.turns) == 2 and made.threads == () and made.cost.turns == 3
    (unused,) = made.outcome["unused"]
    assert unused != made.messages[1].content
    assert (await play(program, policy)).turns == made.turns  # the seed of the second asking is fixed too


async def test_an_answer_that_comes_back_stripped_and_respaced_is_still_the_sampled_one() -> None:
    call = 'I look.  <tool_call>{"arguments":{"path":"."},\n"name": "ls"}</tool_call>'  # as no template would write it
    policy = ScriptedPolicy(lambda c, r: call if len(c.messages) == 1 else "  done \n")
    made = await play(
        """
tools = [{"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}}]
messages = [user("a")]
answer = ask(messages, tools=tools)
call = answer["tool_calls"][0]
call["function"]["arguments"] = call["function"]["arguments"].replace(" ", "")
messages += [{"role": "assistant", "content": answer["content"] + "\\n", "tool_calls": [call]}, {"role": "tool", "tool_call_id": call["id"], "content": "x.py"}]
answer = ask(messages, tools=tools)
messages += [{"role": "assistant", "content": [{"type": "text", "text": answer["content"].strip()}]}, user("thanks")]
ask(messages, tools=tools)
""",
        policy,
        max_tokens=200,
    )
    assert made.messages[1].content == "I look."
    [call] = made.messages[1].tool_calls
    assert (call.name, call.arguments) == ("ls", '{"path": "."}') and len(call.id) == 9
    assert made.messages[3].content == "  done \n" and made.threads == () and made.tools[0]["function"]["name"] == "ls"
    assert made.actions == ('ls({"path": "."})', "done", "done")
    made_rows, _ = rows(made, ScriptedTemplate(), "sampled", 10_000)
    assert len(made_rows) == 1  # ids continued from call to call


async def test_assistant_messages_of_the_programs_own_never_train() -> None:
    """An example put into the prompt, and an answer with the text of a sampled one: neither has ids, and ids are not continued from it."""
    program = """
shot = [user("q"), {"role": "assistant", "content": "1: q"}]
answer = ask([user("q")])["content"]
ask([*shot, user("more"), {"role": "assistant", "content": answer}, user("and")])
"""
    made = await play(program)
    assert len(made.turns) == 2
    prompt = ScriptedTemplate().decode(made.turns[1].prompt or ())
    assert prompt == ScriptedTemplate().render(made.messages[:-1])

    class TextOnly(ScriptedPolicy):
        async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
            turn = await super().complete(conversation, sampling)
            return Turn(message=turn.message, tokens=TurnTokens(), prompt_tokens=1, sampled_tokens=1)

    assert rows(await play(program, TextOnly(echo)), ScriptedTemplate(), "sampled", 10_000) == ([], UNSAMPLED)
    made_rows, problem = rows(await play(THREE_TURNS, TextOnly(echo)), ScriptedTemplate(), "sampled", 10_000)
    assert problem is None and [row.origin for row in made_rows] == ["rendered"]


def test_a_page_shows_a_whole_program_and_it_runs_as_it_is() -> None:
    page = (ROOT / "docs/harness.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(shown, "docs/harness.md", "exec"), names)
    made = list(names["pool"].trajectories.values())
    assert {trajectory.stop for trajectory in made} == {"done"} and len(made) == 8
    assert all(verdict.outcome == "pass" for verdict in names["pool"].verdicts.values())


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec("smolagents") is None, reason="smolagents is not installed (it is in the dev extra)")
@pytest.mark.parametrize("kind", ["code", "tools"])
async def test_a_public_agent_package_does_a_whole_task(kind: str) -> None:
    """smolagents writes its own words into the answers that it sends back, so that each call is a row of its own, and none is lost."""

    def reply(conversation: Conversation, rng: random.Random) -> str:
        number = sum(message.role == "assistant" for message in conversation.messages)
        if kind == "code":
            return ("Look.\n<code>\nn = stock('nails')\n</code>", "So.\n<code>\nfinal_answer(n + stock('screws'))\n</code>")[number]
        calls = ({"name": "stock", "arguments": {"item": "nails"}}, {"name": "final_answer", "arguments": {"answer": "400 nails"}})
        return f"<tool_call>\n{json.dumps(calls[number])}\n</tool_call>"

    program = str(ROOT / "examples/harness/smolagents_agent.py")
    harness = Harness(command=(sys.executable, program, kind, "{prompt}"), timeout_s=120.0)
    player = HarnessAgent("smolagents", ScriptedPolicy(reply), "m", harness, Sampling(max_tokens=256))
    made = await player.run(task("How many nails and screws?"), 0)
    assert made.stop == "done" and made.outcome["answer"] == {"code": "425", "tools": "400 nails"}[kind]
    assert "stop" in made.outcome["wished"] and len(made.actions) == made.cost.turns == 2
    assert made.actions[0] == {"code": "Look.\n<code>\nn = stock('nails')\n</code>", "tools": 'stock({"item": "nails"})'}[kind]
    assert (len(made.tools) > 0) is (kind == "tools")
    made_rows, problem = rows(made, ScriptedTemplate(), "sampled", 100_000)
    assert problem is None
    assert sum(label != -100 for row in made_rows for label in row.labels) == made.cost.sampled_tokens


# ---------------------------------------------------------------- how a try ends


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("sys.exit(0)", "exited with 0 before the model answered once"),
        ("import not_there", "exited with 1 .* No module named 'not_there'"),
        ("time.sleep(6000)", "ran out of time before the model answered once: it printed nothing"),
        ("print(ask([])); sys.exit(1)", "exited with 1 .*400, .*messages"),
        ("ask([user('a')]); os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
    ],
)
async def test_where_the_policy_had_no_say_the_try_is_an_error(program: str, said: str) -> None:
    with pytest.raises(EnvironmentFault, match=f"^task t: python.*{said}") as caught:
        await play(program, timeout_s=0.2 if "sleep" in program else 600.0)
    assert "\n" not in str(caught.value)


async def written(mark: Path) -> str:
    """What a program has written there, once it has."""
    while not (mark.exists() and mark.read_text()):
        await asyncio.sleep(0.001)
    return mark.read_text()


async def out_of_time(program: str, mark: Path, *args: Any, **more: Any) -> Trajectory:
    """What becomes of a try whose time is over as soon as there is something in ``mark``."""
    running = asyncio.create_task(play(program, *args, env={"MARK": str(mark)}, **more))
    await asyncio.wait({running, marked := asyncio.create_task(written(mark))}, return_when=asyncio.FIRST_COMPLETED)
    marked.cancel()
    later(600)
    return await running


async def test_a_program_that_never_exits_is_killed_and_that_is_the_policys_failure(tmp_path: Path) -> None:
    program = "ask([user('a')]); print('busy', flush=True); open(os.environ['MARK'], 'w').write('x'); time.sleep(6000)"
    made = await out_of_time(program, tmp_path / "mark")
    assert made.stop == "turn_limit" and made.outcome["exit"] is None and made.outcome["stdout"] == "busy\n"


class Broken(ScriptedPolicy):
    """Does ``what`` on its second call."""

    def __init__(self, what: Callable[[], Any]) -> None:
        super().__init__(echo)
        self.what, self.calls, self.cancelled = what, 0, 0

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        self.calls += 1
        if self.calls == 2:
            try:
                await self.what()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return await super().complete(conversation, sampling)


async def gone() -> None:
    raise PolicyError("the engine is gone")


async def test_a_broken_engine_ends_the_program_at_once_and_is_an_error() -> None:
    with pytest.raises(PolicyError, match="the engine is gone"):
        await play("ask([user('a')]); ask([user('b')]); time.sleep(6000)", Broken(gone), timeout_s=1e6)


async def test_an_engine_that_hangs_is_an_error_and_its_work_is_cancelled(tmp_path: Path) -> None:
    async def hang() -> None:
        (tmp_path / "mark").write_text("x")
        await asyncio.Event().wait()

    policy = Broken(hang)
    with pytest.raises(EnvironmentFault, match=r"waited for the engine when its 600 s ran out"):
        await out_of_time("ask([user('a')]); ask([user('b')])", tmp_path / "mark", policy)
    assert policy.cancelled == 1


async def test_a_program_that_hangs_up_frees_the_engine(tmp_path: Path) -> None:
    begun, freed = tmp_path / "begun", tmp_path / "freed"

    async def hold() -> None:
        begun.touch()
        try:
            await asyncio.Event().wait()
        finally:
            freed.touch()

    policy = Broken(hold)
    made = await play(
        """
import socket, urllib.parse
ask([user('a')])
where = urllib.parse.urlsplit(os.environ["OPENAI_BASE_URL"])
body = json.dumps({"messages": [user("b")]}).encode()
with socket.create_connection((where.hostname, where.port)) as line:
    line.sendall(b"POST %s/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n" % (where.path.encode(), len(body)) + body)
    while not os.path.exists(os.environ["BEGUN"]): time.sleep(0.01)
while not os.path.exists(os.environ["FREED"]): time.sleep(0.01)
ask([user('c')])
""",
        policy,
        env={"BEGUN": str(begun), "FREED": str(freed)},
    )
    assert policy.cancelled == 1 and made.stop == "done" and made.actions == ("1: a", "1: c")


async def test_calls_over_the_limit_are_refused_and_the_try_fails() -> None:
    made = await play("for i in range(5): answer = ask([user(str(i))])\nprint(answer)", max_calls=2)
    assert made.stop == "turn_limit" and made.cost.turns == 2
    assert "403" in made.outcome["stdout"] and "used up its 2 calls" in made.outcome["stdout"]
    anything = FunctionVerifier(lambda answer, reference: True, "anything")
    assert judge(task(), made, anything).outcome == "fail"
    crashed = await play("print(ask([user('a')])); sys.exit(2)")
    assert crashed.stop == "crashed" and judge(task(), crashed, anything).outcome == "fail"


OVERFLOW = "ask([user('a')]); code, error = ask([user('x' * 500)]); assert (code, error['code']) == (400, 'context_length_exceeded')\n"


@pytest.mark.parametrize(("after", "stop"), [("", "overflow"), ("sys.exit(1)", "overflow"), ("ask([user('short')])", "done")])
async def test_overflow_is_the_policys_failure_unless_the_program_recovers(after: str, stop: str) -> None:
    made = await play(OVERFLOW + after, ScriptedPolicy(echo, settings=Scripted(context=300)))
    assert made.stop == stop
    first = await play("ask([user('x' * 500)])", ScriptedPolicy(echo, settings=Scripted(context=300)))
    assert (first.stop, first.messages, first.turns) == ("overflow", task().prompt, ())


async def test_a_hundred_megabytes_of_output_are_not_kept() -> None:
    made = await play("ask([user('a')])\nfor _ in range(100): sys.stdout.write('x' * (1 << 20))\nprint('\\nthe end')")
    assert made.stop == "done" and made.outcome["answer"].endswith("the end") and len(made.outcome["answer"]) <= 16 << 10


# ---------------------------------------------------------------- nothing stays behind

FORK = """
ask([user('a')])
if os.fork() == 0:
    os.chdir("/"); open(os.environ["MARK"], "w").write(str(os.getpid()))
    time.sleep(6000); os._exit(0)
while not os.path.exists(os.environ["MARK"]) or not open(os.environ["MARK"]).read(): time.sleep(0.01)
"""


@pytest.mark.parametrize("end", ["", "sys.exit(1)", "time.sleep(6000)"])
async def test_a_daemon_in_its_group_dies_with_the_try(end: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    if "sleep" in end:
        await out_of_time(FORK + end, mark)
    else:
        await play(FORK + end, env={"MARK": str(mark)})
    wait_until(lambda: not runs(int(mark.read_text())))


async def test_cancelling_a_try_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    running = asyncio.create_task(play(FORK + "time.sleep(6000)", env={"MARK": str(mark), "TMPDIR": "{here}"}))
    daemon = await written(mark)
    folder = Path(f"/proc/{daemon}/environ").read_bytes().split(b"HOME=")[1].split(b"\0")[0].decode()
    assert runs(int(daemon)) and Path(folder).exists()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    wait_until(lambda: not runs(int(mark.read_text())))
    assert not Path(folder).parent.exists()


# ---------------------------------------------------------------- settings and identity


async def test_settings_are_in_the_key_and_each_try_has_its_seed() -> None:
    keys = {agent(THREE_TURNS, **more).key(task(), 0) for more in ({}, {"max_calls": 3}, {"env": {"A": "b"}}, {"max_tokens": 65})}
    assert len(keys) == 4 and agent(THREE_TURNS).key(task(), 0) in keys
    assert agent(THREE_TURNS).key(task(), 1) not in keys
    player = agent("ask([user('a')])", ScriptedPolicy(lambda c, r: str(r.random())))
    first, second, again = [await player.run(task(), index) for index in (0, 1, 0)]
    assert first.turns == again.turns != second.turns and (first.key, second.key) == (player.key(task(), 0), player.key(task(), 1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"command": ()}, "command is empty"),
        ({"command": ("x",)}, "neither command nor env has {prompt}"),
        ({"command": ("x", "{prompt}"), "prompt_by": "file"}, "neither command nor env has {prompt_file}"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        Harness(**settings)


async def test_a_program_that_is_not_there_and_a_prompt_that_is_no_argument() -> None:
    with pytest.raises(SettingsError, match=r"no program 'no-such-program' on PATH"):
        HarnessAgent("x", ScriptedPolicy(echo), "m", Harness(command=("no-such-program", "{prompt}")), Sampling())
    for text in ("a\0b", "x" * (1 << 20)):
        with pytest.raises(EnvironmentFault, match=r"cannot be started: .*; give the prompt by stdin or file"):
            await play("", text=text)
    with pytest.raises(EnvironmentFault, match="no prompt"):
        await agent("").run(Task(key="t", family="t"), 0)


# ---------------------------------------------------------------- the wire


@asynccontextmanager
async def served(policy: Any = None, **more: Any) -> AsyncIterator[tuple[Calls, Callable[..., Any]]]:
    calls = Calls(policy or ScriptedPolicy(echo), Sampling(**{"max_tokens": 64, **more}), 100)
    async with serve(calls) as url, aiohttp.ClientSession() as session:

        async def post(body: Any, path: str = "/chat/completions") -> tuple[int, Any]:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            async with session.post(url + path, data=data) as response:
                text = await response.text()
                return response.status, json.loads(text) if response.content_type == "application/json" else text

        async def get(path: str) -> tuple[int, Any]:
            async with session.get(url + path) as response:
                return response.status, await response.json()

        post.get = get  # type: ignore[attr-defined]
        yield calls, post


HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{",
        b'{"messages": ' + b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        {"messages": []},
        {"messages": None},
        {"messages": "hi"},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [*HELLO, {"role": "assistant", "content": "prefilled"}]},
        {"messages": HELLO, "tools": ["not a schema"]},
        {"messages": HELLO, "stream": "yes"},
        {"messages": HELLO, "n": 2},
    ],
    ids=lambda body: repr(body)[:40],
)
async def test_garbage_gets_a_400_of_one_line_and_costs_no_call(body: Any) -> None:
    async with served() as (calls, post):
        status, said = await post(body)
        assert status == 400 and said["error"]["type"] == "invalid_request_error"
        assert "\n" not in said["error"]["message"] and len(said["error"]["message"]) <= 500
        assert calls.started == 0
        assert (await post({"messages": HELLO}))[0] == 200  # and the server still serves


async def test_a_huge_body_and_other_paths_are_refused_in_openais_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "MAX_BODY", 1 << 20)
    async with served() as (_, post):
        status, said = await post({"messages": [{"role": "user", "content": "x" * (2 << 20)}]})
        assert (status, said["error"]["code"], said["error"]["message"]) == (413, "request_too_large", "a request is at most 1 MiB")
        status, said = await post({}, "/responses")
        assert status == 404 and "/chat/completions" in said["error"]["message"]
        assert (await post.get("/chat/completions"))[0] == 405
        status, said = await post.get("/models")
        assert status == 200 and said["data"][0]["id"] == "scripted"


async def test_the_runs_sampling_wins_and_what_was_wished_for_is_noted() -> None:
    async with served(temperature=0.5) as (calls, post):
        wish = {
            "temperature": 0.0,
            "top_p": 1.0,
            "max_tokens": 64,
            "stop": ["\n"],
            "model": "gpt-unknown",
            "tool_choice": "auto",
            "seed": None,
        }
        status, said = await post({"messages": HELLO, **wish})
        assert status == 200 and said["model"] == "scripted" and said["usage"]["completion_tokens"] == calls.sampled_tokens
        assert calls.wished == {"temperature": [0.0], "stop": [["\n"]], "model": ["gpt-unknown"]}


@pytest.mark.parametrize("tools", [(), ({"type": "function", "function": {"name": "ls"}},)])
async def test_a_stream_says_what_the_whole_answer_says(tools: tuple[Any, ...]) -> None:
    text = '<tool_call>{"name": "ls", "arguments": {}}</tool_call>' if tools else "a\nb"
    async with served(ScriptedPolicy(lambda c, r: text)) as (calls, post):
        asked = {"messages": HELLO, "tools": tools}
        _, whole = await post(asked)
        _, stream = await post({**asked, "stream": True, "stream_options": {"include_usage": True}})
        events = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
        assert events.pop() == "[DONE]"
        first, last, usage = map(json.loads, events)
        delta, message = first["choices"][0]["delta"], whole["choices"][0]["message"]
        assert (delta["role"], delta["content"]) == (message["role"], message["content"])
        assert [c["function"] for c in delta.get("tool_calls", ())] == [c["function"] for c in message.get("tool_calls", ())]
        assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == ("tool_calls" if tools else "stop")
        assert usage["usage"]["total_tokens"] == whole["usage"]["total_tokens"] > 0
        assert len(calls.answered) == 2


async def test_a_cut_turn_says_so_and_an_engine_that_breaks_is_a_502() -> None:
    async with served(ScriptedPolicy(lambda c, r: "on and on"), max_tokens=3) as (_, post):
        assert (await post({"messages": HELLO}))[1]["choices"][0]["finish_reason"] == "length"
    policy = ScriptedPolicy(echo)
    await policy.close()
    async with served(policy) as (calls, post):
        status, said = await post({"messages": HELLO})
        assert status == 502 and said["error"]["type"] == "server_error" and "is closed" in said["error"]["message"]
        assert isinstance(calls.broken.result(), PolicyError)
