"""Tools: what the policy may call, what it is told when it calls wrongly, and how calls are read from and written to a model's text."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import held_port, later
from sharpen.agents.base import PolicyAgent
from sharpen.agents.checks import gold_and_noop
from sharpen.agents.recorded import replay
from sharpen.chat.masks import rows
from sharpen.chat.scripted import ScriptedTemplate
from sharpen.chat.template import ChatTemplate
from sharpen.environments import mcp, tools
from sharpen.environments.base import assistant_turns
from sharpen.environments.mcp import Mcp, mcp_environment
from sharpen.environments.object import Object, object_environment
from sharpen.environments.tools import Functions, Limits, ToolEnvironment, function_environment, function_tools
from sharpen.errors import EnvironmentFault, ModelError, SettingsError, TaskError
from sharpen.policies.base import Sampling
from sharpen.policies.scripted import ScriptedPolicy
from sharpen.records import Message, Task, ToolCall
from sharpen.tasks.base import TaskSet
from sharpen.tasks.data_file import Jsonl
from sharpen.tasks.load import load_tasks
from sharpen.verifiers.function import FunctionVerifier
from sharpen.verifiers.outcome import EnvironmentOutcome
from sharpen.verifiers.run import judge

TASK = Task(key="t", family="t", split="train", prompt=(Message(role="user", content="What is 6 * 7?"),), reference="42")


def multiply(a: int, b: int) -> int:
    """Multiply two whole numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


def call(name: str, **arguments: Any) -> Message:
    return Message(role="assistant", content="", tool_calls=(ToolCall(name=name, arguments=json.dumps(arguments)),))


def environment(*functions: Callable[..., Any], **limits: Any) -> ToolEnvironment:
    @asynccontextmanager
    async def open_(task: Task) -> Any:
        yield function_tools(functions)

    return ToolEnvironment("tools", open_, Limits(**limits))


async def results(env: ToolEnvironment, *turns: Message | str) -> list[str]:
    """What the policy is told after each call."""
    played = await replay(TASK, env, turns)
    return [message.content for message in played.messages if message.role in ("tool", "user")][1:]


# ---------------------------------------------------------------- functions


async def test_a_call_is_answered_and_a_plain_answer_ends_it() -> None:
    played = await replay(TASK, environment(multiply), [call("multiply", a=6, b=7), "42", "never played"])
    assert [message.role for message in played.messages] == ["user", "assistant", "tool", "assistant"]
    assert played.messages[2].content == "42" and played.messages[2].name == "multiply"
    assert played.stop == "done" and played.outcome == {"tool_calls": 1, "tool_errors": 0}
    assert played.tools[0]["function"]["parameters"]["properties"]["a"] == {"type": "integer", "description": "The first number."}
    assert played.actions == ('[["multiply", {"a": 6, "b": 7}]]', "42")


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (call("mulitply", a=1, b=2), "error: there is no tool 'mulitply'; did you mean 'multiply'?"),
        (call("multiply", a=1), "error: multiply: missing a required argument: 'b'; it takes a, b"),
        (call("multiply", a=1, b=2, c=3), "got an unexpected keyword argument 'c'"),
        (Message(role="assistant", content="", tool_calls=(ToolCall(name="multiply", arguments="{"),)), "are not JSON"),
        (Message(role="assistant", content="", tool_calls=(ToolCall(name="multiply", arguments="[1]"),)), "must be an object"),
        (
            Message(role="assistant", content="<tool_call>x", problem="the tool call cannot be read: no"),
            "error: the tool call cannot be read: no",
        ),
    ],
)
async def test_a_wrong_call_is_answered_with_what_is_wrong(turn: Message, said: str) -> None:
    [answer, after] = await results(environment(multiply), turn, call("multiply", a=6, b=7))
    assert answer.startswith("error:") and said in answer and "\n" not in answer
    assert after == "42"  # and the policy may go on


def raises(x: str) -> str:
    """Raise.

    Args:
        x: Anything.
    """
    raise RuntimeError(f"no {x}")


def quits(x: str) -> str:
    """Leave.

    Args:
        x: Anything.
    """
    sys.exit(3)


def huge(x: str) -> str:
    """Say much.

    Args:
        x: Anything.
    """
    return x * 10_000_000


def binary(x: str) -> bytes:
    """Give bytes.

    Args:
        x: Anything.
    """
    return b"\xff\xfe\x00" * 5


def odd(x: str) -> Any:
    """Give something else.

    Args:
        x: Anything.
    """
    return {"a": None, "b": [1, object]}


async def test_a_tool_that_misbehaves_does_not_take_the_episode_with_it() -> None:
    env = environment(raises, quits, huge, binary, odd, max_chars=100)
    said = await results(env, *(call(name, x="y") for name in ("raises", "quits", "huge", "binary", "odd")))
    assert said[0] == "error: RuntimeError: no y"
    assert said[1] == "error: RuntimeError: SystemExit: 3"
    assert said[2] == "y" * 100 + "\n[9999900 more characters cut]"
    assert said[3] == "error: the result is 15 bytes that are not text"
    assert said[4].startswith("{'a': None")


async def test_a_tool_that_hangs_is_an_error_and_many_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(x: str) -> None:
        """Hang.

        Args:
            x: Anything.
        """
        freed.wait()

    freed = threading.Event()
    monkeypatch.setattr(tools, "STUCK", 2)
    env = environment(hang, timeout_s=0.05, max_turns=4)
    try:
        assert await results(env, call("hang", x="")) == ["error: hang gave no result within 0.05 s"]
        with pytest.raises(EnvironmentFault, match="2 tool calls hang"):
            await results(env, call("hang", x=""), call("hang", x=""))
    finally:
        freed.set()


async def test_a_turn_makes_so_many_calls_and_no_more() -> None:
    many = Message(role="assistant", content="", tool_calls=call("multiply", a=1, b=1).tool_calls * 20)
    said = await results(environment(multiply), many)
    assert said[:16] == ["1"] * 16 and said[16:] == ["error: only 16 calls in one turn are made"] * 4


def test_tools_that_cannot_be_offered_are_refused_before_anything_runs(tmp_path: Path) -> None:
    def bare(x):  # type: ignore[no-untyped-def]
        return x

    with pytest.raises(SettingsError, match="two tools are called 'multiply'"):
        function_tools([multiply, multiply])
    with pytest.raises(SettingsError, match="tool 'bare' cannot be described"):
        function_tools([bare])
    with pytest.raises(SettingsError, match="functions is empty"):
        function_environment(Functions(functions=()))
    with pytest.raises(SettingsError, match="no file"):
        function_environment(Functions(functions=(f"{tmp_path}/none.py:f",)))
    with pytest.raises(SettingsError, match="max_turns is 0"):
        Functions(functions=("operator:add",), max_turns=0)


def write(folder: Path, code: str) -> str:
    path = folder / "mine.py"
    path.write_text(textwrap.dedent(code))
    return str(path)


MINE = '''
    def double(x: int) -> int:
        """Double it.

        Args:
            x: A number.
        """
        return 2 * x

    def solve(task):
        return [{"tool_calls": [{"name": "double", "arguments": {"x": int(task.reference) // 2}}]}, task.reference]
'''


async def test_functions_from_a_file_with_an_expert(tmp_path: Path) -> None:
    path = write(tmp_path, MINE)
    env = function_environment(Functions(functions=(f"{path}:double",), expert=f"{path}:solve", system="Use the tool."))
    verifier = FunctionVerifier(lambda answer, reference: answer == reference, "same")
    checks = await gold_and_noop(TaskSet("t", (TASK,), env, verifier))
    assert checks.gold_passes and checks.noop_fails
    played = await replay(TASK, env, env.expert(TASK) or ())
    assert played.messages[0].content == "Use the tool." and played.messages[3].content == "42"
    before = env.name
    write(tmp_path, MINE.replace("2 * x", "x + x"))
    assert function_environment(Functions(functions=(f"{path}:double",), expert=f"{path}:solve", system="Use the tool.")).name != before


def test_gold_turns_as_people_write_them() -> None:
    nested = {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
    [turn, answer] = assistant_turns([nested, "done"], "gold")
    assert turn.tool_calls == (ToolCall(name="f", arguments='{"x": 1}'),) and answer.content == "done"
    with pytest.raises(TaskError, match=r"gold, turn 1 is .*write a text"):
        assistant_turns([{"tool_calls": [{"nome": "f"}]}], "gold")
    with pytest.raises(TaskError, match="write a text"):
        assistant_turns(3, "gold")


# ---------------------------------------------------------------- objects, as TRL takes them


COUNTER = '''
    class Counter:
        """Count to the target."""
        def reset(self, target=2, **row):
            self.at, self.target = 0, target
            return f" Count to {target}."

        def up(self, by: int) -> str:
            """Count up.

            Args:
                by: How far.
            """
            self.at += by
            return str(self.at)

        def get_reward(self) -> float:
            return 1.0 if self.at == self.target else 0.25

        def _hidden(self): ...
'''


async def test_an_object_of_the_duck_type_is_an_environment(tmp_path: Path) -> None:
    env = object_environment(Object(factory=f"{write(tmp_path, COUNTER)}:Counter"))
    task = Task(key="c", family="c", prompt=(Message(role="user", content="Hello."),), params={"target": 5})
    won, lost = [await replay(task, env, [call("up", by=by), "done"]) for by in (5, 4)]
    assert won.messages[0].content == "Hello. Count to 5."
    assert [tool["function"]["name"] for tool in won.tools] == ["up"]
    assert judge(task, won, EnvironmentOutcome()).outcome == "pass"
    assert (judge(task, lost, EnvironmentOutcome()).outcome, lost.outcome["score"]) == ("fail", 0.25)


async def test_tasks_in_a_file_played_in_an_object_and_judged_by_its_reward(tmp_path: Path) -> None:
    turns = [{"tool_calls": [{"name": "up", "arguments": {"by": 2}}]}, "done"]
    (tmp_path / "tasks.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Hello {n}.", "gold": turns, "split": "train"}) + "\n" for n in range(3))
    )
    factory = f"{write(tmp_path, COUNTER)}:Counter"
    tasks = load_tasks(Jsonl(path=str(tmp_path / "tasks.jsonl"), verifier="environment", environment=Object(factory=factory)))
    checks = await gold_and_noop(tasks)
    assert (checks.gold_passes, checks.noop_fails) == (True, True), checks.example


async def test_an_object_that_is_no_environment(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "class Nothing:\n    def reset(self): ...\nclass Broken:\n    def reset(self): raise OSError('gone')\n    def f(self): '''F.'''\n",
    )
    for name, why in {"Nothing": "needs a method reset and at least one public method", "Broken": "OSError: gone"}.items():
        with pytest.raises(EnvironmentFault, match=why):
            await object_environment(Object(factory=f"{path}:{name}")).start(TASK)


# ---------------------------------------------------------------- MCP


SERVER = '''
    import os
    import sys
    import time

    from mcp.server import MCPServer

    server = MCPServer("sums", log_level="CRITICAL")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool()
    def fail(why: str) -> str:
        """Fail."""
        raise ValueError(why)

    @server.tool()
    def die() -> str:
        """Die."""
        os._exit(1)

    @server.tool()
    def hang() -> str:
        """Hang."""
        time.sleep(5)

    @server.tool()
    def much() -> str:
        """Say much."""
        return "y" * 1_000_000

    if __name__ == "__main__":
        server.run("streamable-http", port=int(sys.argv[1])) if len(sys.argv) > 1 else server.run("stdio")
'''


@pytest.fixture(params=["stdio", "http"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A real server, as ``Mcp`` finds it."""
    pytest.importorskip("mcp")
    path = write(tmp_path, SERVER)
    if request.param == "stdio":
        yield {"command": (sys.executable, path)}
        return
    with http_server(path) as (url, _):
        yield {"url": url}


@contextmanager
def http_server(path: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The server in ``path`` on a port of loopback."""
    held, port = held_port()
    process = subprocess.Popen([sys.executable, path, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/mcp", process
    finally:
        process.kill()
        process.wait()
        held.close()


async def test_an_mcp_server_is_played_with(server: dict[str, Any]) -> None:
    env = mcp_environment(Mcp(tools=("add", "fail"), **server))
    played = await replay(TASK, env, [call("add", a=2, b=3), call("add", a="x"), call("fail", why="because"), "5"])
    assert [tool["function"]["name"] for tool in played.tools] == ["add", "fail"]
    said = [message.content for message in played.messages if message.role == "tool"]
    assert (
        said[0] == "5" and said[1].startswith("error: Error executing tool add") and said[2].startswith("error: Error executing tool fail")
    )
    with pytest.raises(EnvironmentFault, match="no tool 'ad'; did you mean 'add'"):
        await mcp_environment(Mcp(tools=("ad",), **server)).start(TASK)


@pytest.mark.parametrize("server", ["stdio"], indirect=True)
async def test_an_mcp_tool_that_misbehaves_is_answered(server: dict[str, Any]) -> None:
    env = mcp_environment(Mcp(timeout_s=0.5, **server))
    assert await results(env, call("hang")) == ["error: hang gave no result within 0.5 s"]
    said = await results(mcp_environment(Mcp(timeout_s=300, max_chars=100, **server)), call("much"), call("add", a=1, b=1))
    assert said == ["y" * 100 + "\n[999900 more characters cut]", "2"]


async def test_an_mcp_server_that_dies_is_a_fault(server: dict[str, Any]) -> None:
    with pytest.raises(EnvironmentFault, match=r"died|closed|broke") as fault:
        await asyncio.wait_for(
            replay(TASK, mcp_environment(Mcp(**server)), [call("add", a=1, b=2), call("die"), call("add", a=1, b=2), "x"]), 600
        )
    assert "\n" not in str(fault.value)
    if "url" in server:
        with pytest.raises(EnvironmentFault, match="did not start"):
            await asyncio.wait_for(mcp_environment(Mcp(**server)).start(TASK), 600)


async def test_an_mcp_server_that_is_killed_or_freezes_between_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mcp")
    path = write(tmp_path, SERVER)
    with http_server(path) as (url, process):
        episode, _ = await mcp_environment(Mcp(url=url, timeout_s=20)).start(TASK)
        assert (await episode.step(call("add", a=1, b=2))).messages[0].content == "3"
        process.send_signal(signal.SIGSTOP)
        unanswered = asyncio.create_task(episode.step(call("add", a=1, b=2)))
        for _ in range(100):
            await asyncio.sleep(0)
        later(21)
        assert (await unanswered).messages[0].content == "error: add gave no result within 20 s"
        began = time.monotonic()
        await episode.close()
        monkeypatch.setattr(mcp, "START_S", 0.5)
        with pytest.raises(EnvironmentFault, match=f"{url} did not start: it gave no list of tools within 0.5 s"):
            await mcp_environment(Mcp(url=url)).start(TASK)
        assert time.monotonic() - began < 240  # the client by itself waits for five minutes
    monkeypatch.undo()
    with http_server(path) as (url, process):

        def reply(conversation: Any, rng: Any) -> str:
            if len(conversation.messages) > 1:
                process.kill()
                process.wait()
            return '<tool_call>{"name":"add","arguments":{"a":1,"b":2}}</tool_call>'

        agent = PolicyAgent("s", ScriptedPolicy(reply), "f", mcp_environment(Mcp(url=url)), Sampling(max_tokens=200))
        with pytest.raises(EnvironmentFault, match=r"died|closed|broke") as fault:
            await asyncio.wait_for(agent.run(TASK, 0), 600)
        assert "\n" not in str(fault.value)


async def test_an_mcp_server_that_never_lived_is_a_fault() -> None:
    pytest.importorskip("mcp")
    with pytest.raises(EnvironmentFault, match="did not start"):
        await mcp_environment(Mcp(command=("/no/such/program",))).start(TASK)
    with pytest.raises(EnvironmentFault, match="did not start"):
        await asyncio.wait_for(mcp_environment(Mcp(url="http://127.0.0.1:9/mcp")).start(TASK), 600)
    with pytest.raises(SettingsError, match="either command or url"):
        Mcp()


# ---------------------------------------------------------------- calls in a model's text


async def test_a_scripted_policy_calls_a_tool_and_trains_on_what_it_sampled() -> None:
    said = iter(['<tool_call>{"name":"multiply","arguments":{"a":6,"b":7}}</tool_call>', "42"])
    policy = ScriptedPolicy(lambda conversation, rng: next(said))
    agent = PolicyAgent("s", policy, "f", environment(multiply), Sampling(temperature=1.0, max_tokens=200))
    played = await agent.run(TASK, 0)
    assert played.messages[1].tool_calls[0].name == "multiply" and played.messages[2].content == "42" and played.stop == "done"
    template = ScriptedTemplate()
    [row], problem = rows(played, template, "sampled", 10_000)
    assert problem is None and row.origin == "sampled"  # one row: the spaces that the template would write are no new history
    trained = template.decode([token for token in row.labels if token != -100])
    assert trained == '<tool_call>{"name":"multiply","arguments":{"a":6,"b":7}}</tool_call><|end|>42<|end|>'


@pytest.fixture(scope="module")
def smol() -> Iterator[Any]:
    from sharpen.models import load_model

    yield load_model("smollm2-135m-instruct")


def test_a_template_without_tools_says_so_and_can_be_given_one(smol: Any, tmp_path: Path) -> None:
    from sharpen.models import with_template

    schemas = function_tools([multiply]).schemas
    with pytest.raises(ModelError, match="does not show tools to the model; set template: hermes"):
        ChatTemplate.load(smol.path).prompt(TASK.prompt, tools=schemas)
    given = with_template(smol, "hermes", tmp_path)
    assert given.fingerprint != smol.fingerprint and with_template(smol, "hermes", tmp_path) == given
    template = ChatTemplate.load(given.path)
    messages = [
        Message(role="system", content="Be brief."), *TASK.prompt, call("multiply", a=6, b=7), Message(role="tool", content="42", name="multiply"),
        Message(role="assistant", content="It is\n42.", reasoning="easy"),
    ]  # fmt: skip
    for end in range(1, len(messages) + 1):  # prefix stability: no later message changes how an earlier one reads
        assert template.render(messages, schemas, answered=True).startswith(template.render(messages[:end], schemas, answered=True))
    [row], problem = rows(_recorded(messages, schemas), template, "demonstration", 4000)
    assert problem is None
    trained = template.decode([token for token in row.labels if token != -100])
    assert trained.startswith('<tool_call>\n{"name": "multiply", "arguments": {"a": 6, "b": 7}}\n</tool_call><|im_end|>')
    for wrong, why in {"hermis": "did you mean 'hermes'", str(tmp_path / "no.jinja"): "there is no chat template"}.items():
        with pytest.raises(ModelError, match=why):
            with_template(smol, wrong, tmp_path)
    (tmp_path / "odd.jinja").write_text("<|start_header_id|>{{ messages[0].content }}")
    with pytest.raises(ModelError, match=r"has no <\|start_header_id\|>"):
        with_template(smol, str(tmp_path / "odd.jinja"), tmp_path)


def _recorded(messages: list[Message], schemas: Any) -> Any:
    from sharpen.records import SampleKey, Trajectory

    key = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
    return Trajectory(key=key, agent="expert", messages=tuple(messages), tools=schemas, stop="done")


CALL = {"name": "multiply", "arguments": {"a": 6, "b": 7}}


@pytest.mark.parametrize(
    ("name", "end", "text"),
    [
        ("qwen2_5", "<|im_end|>", f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"),
        ("qwen3", "<|im_end|>", f"<think>\nhm\n</think>\n\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>"),
        ("llama3_1", "<|eot_id|>", '{"name": "multiply", "parameters": {"a": 6, "b": 7}}'),
    ],
)
def test_calls_are_read_as_the_common_templates_write_them(name: str, end: str, text: str, smol: Any) -> None:
    """On the templates that TRL ships, copied by it from the models; the tokenizer is another's, with their marks added."""
    import transformers
    import trl

    tokenizer = transformers.AutoTokenizer.from_pretrained(smol.path)
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]})
    template = ChatTemplate(tokenizer, name)
    schemas = function_tools([multiply]).schemas
    message = template.message(template.encode(text + end), schemas)
    assert [(c.name, json.loads(c.arguments)) for c in message.tool_calls] == [("multiply", {"a": 6, "b": 7})], message
    assert message.content == "" and message.problem is None
    assert message.reasoning == ("hm" if "think" in text else None)
    plain = template.message(template.encode("It is 42." + end), schemas)
    assert (plain.content, plain.tool_calls) == ("It is 42.", ())
    # And written back: the next prompt goes on from the ids that were sampled.
    turn = template.encode(text + end)
    first = template.prompt(TASK.prompt, tools=schemas)
    told = Message(role="tool", content="42", name="multiply", tool_call_id=message.tool_calls[0].id)
    from sharpen.records import TurnTokens

    following = template.prompt((*TASK.prompt, message, told), [TurnTokens(prompt=tuple(first), output=tuple(turn))], schemas)
    if name != "qwen3":  # whose template rewrites history: it drops earlier reasoning
        assert following[: len(first) + len(turn)] == [*first, *turn] and "42" in template.decode(following[len(first) + len(turn) :])


@pytest.mark.parametrize("spec", ["MISTRAL", "MISTRAL_ARGS"])
def test_mistral_calls(spec: str) -> None:
    from sharpen.chat import tool_calls

    both = {
        "MISTRAL": '[TOOL_CALLS][{"name": "multiply", "arguments": {"a": 6, "b": 7}}, {"name": "g", "arguments": {}}]</s>',
        "MISTRAL_ARGS": '[TOOL_CALLS]multiply[ARGS]{"a": 6, "b": 7}[TOOL_CALLS]g[ARGS]{}</s>',
    }
    found = tool_calls.read(both[spec], getattr(tool_calls, spec), (), "", plain="")
    assert [(c.name, json.loads(c.arguments)) for c in found.tool_calls] == [("multiply", {"a": 6, "b": 7}), ("g", {})], found
    assert all(len(c.id) == 9 and c.id.isalnum() for c in found.tool_calls)


@pytest.mark.parametrize(
    "call",
    [
        '{"name": ',
        "nonsense</tool_call>",
        '{"arguments": {}}</tool_call>',
        '{"name": "f", "arguments": 3}</tool_call>',
        "[]</tool_call>",
        "null</tool_call>",
        '{"name": "f", "arguments": {"x": ' + "[" * 100_000,
    ],
)
def test_a_broken_call_is_text_with_a_problem(call: str) -> None:
    text = f"<tool_call>{call}"
    message = ScriptedTemplate().message([*text.encode(), 256], function_tools([multiply]).schemas)
    assert (
        message.content == text
        and message.tool_calls == ()
        and "cannot be read" in (message.problem or "")
        and "\n" not in (message.problem or "")
    )
