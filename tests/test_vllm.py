"""A managed vLLM: what it leaves behind (nothing), what it says when it fails, and that new weights are the ones that answer."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import yaml

from conftest import wait_until
from sharpen import loop
from sharpen.errors import ContextOverflow, ModelError, PolicyError
from sharpen.methods import base as bench
from sharpen.models import load_model, open_folder
from sharpen.policies import choose, leash
from sharpen.policies.base import Conversation, Lasting, Policy, Sampling
from sharpen.policies.scripted import ScriptedPolicy, open_scripted
from sharpen.policies.transformers import Transformers, TransformersPolicy
from sharpen.policies.vllm import Vllm, VllmPolicy, _last_error
from sharpen.records import Lineage, Message, Model
from sharpen.run import climb
from sharpen.settings import load_settings
from test_policies import GREEDY, QUESTIONS, SHORT, OnTheLoop, ask, smollm, vllm_settings

SIDE = Path(leash.__file__).parent / "vllm_side" / "sharpen_vllm.py"


def group(leader: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text().partition(" (")
            state, _, pgid = rest.rpartition(") ")[2].split()[:3]
            if int(pgid) == leader and state != "Z":
                found.append(int(pid))
    return found


def refuses(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


# ---------------------------------------------------------------- the leash

SERVER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(6000)']); time.sleep({})"
OWNER = """
import os, subprocess, sys
print(subprocess.Popen([sys.executable, {leash!r}, str(os.getpid()), sys.executable, "-c", {server!r}], start_new_session=True).pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("server_s", [6000, 0.5], ids=["the owner is killed", "the command ends"])
def test_no_process_outlives_the_leash(server_s: float) -> None:
    """The server has a child of its own, which nobody else would end."""
    code = OWNER.format(leash=leash.__file__, server=SERVER.format(server_s))
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout
    leader = int(owner.stdout.readline())
    if server_s > 1:
        wait_until(lambda: len(group(leader)) == 3)
        os.kill(owner.pid, signal.SIGKILL)
    wait_until(lambda: not group(leader))
    owner.kill()
    owner.communicate()


# ---------------------------------------------------------------- what a log says

LOGS = {
    "unrecognized arguments: --no-such": "usage: api_server.py [-h]\nsharpen_vllm.py: error: unrecognized arguments: --no-such\n",
    "ValueError: To serve at least one request, 9 GiB is needed.": (
        "(EngineCore pid=61) ERROR 11-22 23:43:56 [core.py:12] ValueError: To serve at least one request, 9 GiB is needed.\n"
        "(APIServer pid=52) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    ),
    "ValueError: Available memory on node 0 (9.1/23.4 GiB) on startup is less than desired": (
        "(Worker pid=7) ERROR 11-22 23:43:56 [x.py:9] ValueError: Available memory on node 0 (9.1/23.4 GiB) on startup is less than desired\n"
        "(EngineCore pid=61) Exception: WorkerProc initialization failed due to an exception in a background process. "
        "See stack trace for root cause.\n"
    ),
    "Value error, Sleep mode is not supported on current platform.": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, Sleep mode is not supported on current platform. [type=value_error, input_value=ArgsKwargs((), {'m': 1})]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error\n"
    ),
    "FileNotFoundError: [Errno 2] No such file or directory: '/none'": (
        "Traceback (most recent call last):\n  x\nFileNotFoundError: [Errno 2] No such file or directory: '/none'\n"
    ),
    "no reason given": "INFO 11-22 23:43:56 [x.py:1] all is well\n",
}


@pytest.mark.parametrize("said", LOGS)
def test_the_last_error_of_a_log(said: str) -> None:
    assert _last_error(LOGS[said]).endswith(said)


@pytest.mark.real
@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("/none/python", r"No such file or directory: '/none/python' \(log: .*vllm.log\)"),
        ("", "No module named 'vllm'; name the interpreter"),
    ],
)
async def test_without_vllm_it_says_so(tmp_path: Path, python: str, said: str) -> None:
    if not python and importlib.util.find_spec("vllm") is not None:
        pytest.skip("this interpreter has vLLM")
    policy = VllmPolicy(smollm(), Vllm(python=python), tmp_path)
    results = await asyncio.gather(*(policy.complete(ask("Hi"), GREEDY) for _ in range(3)), return_exceptions=True)
    await policy.close()
    for result in results:
        assert isinstance(result, ModelError) and "\n" not in str(result)
        with pytest.raises(ModelError, match=said):
            raise result
    assert (tmp_path / "vllm.log").read_text().count("Traceback") == 1  # asked three times, started once


# ---------------------------------------------------------------- the guard


async def test_nobody_without_the_key_commands_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARPEN_VLLM_KEY", "right")
    spec = importlib.util.spec_from_file_location("sharpen_vllm", SIDE)
    assert spec and spec.loader
    side = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(side)
    passed: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    async def send(message: Any) -> None:
        sent.append(message.get("status"))

    guard = side.Guard(app)
    for kind in ("http", "websocket"):
        for headers in ([], [(b"authorization", b"Bearer wrong")], [(b"authorization", b"")], [(b"other", b"Bearer right")]):
            await guard({"type": kind, "headers": headers}, None, send)
    assert passed == [] and sent == [401, None] * 4
    await guard({"type": "http", "headers": [(b"authorization", b"Bearer right")]}, None, send)
    await guard({"type": "lifespan"}, None, send)
    assert passed == ["http", "lifespan"]


# ---------------------------------------------------------------- on the bench


class Resting(ScriptedPolicy):
    """A scripted policy that lasts."""

    def __init__(self, model: Model, done: list[str]) -> None:
        self.done = done
        super().__init__(open_scripted(model).reply, model.name)

    def take_up(self, model: Model) -> None:
        self.done.append(f"take up {model.name}")
        self.name, self.reply = model.name, open_scripted(model).reply

    async def rest(self) -> None:
        self.done.append("rest")

    async def close(self) -> None:
        self.done.append("close")
        await super().close()


def test_a_lasting_policy_stays_open_from_rung_to_rung(scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It rests for each training, takes up each model that comes after, and the ladder comes out as with a policy for each model."""
    done: list[str] = []

    def open_lasting(model: Model, *_: Any) -> tuple[Policy, str]:
        done.append(f"open {model.name}")
        policy = Resting(model, done)
        assert isinstance(policy, Lasting)
        return policy, "lasting"

    small = {
        "ladder.rungs": "[sft]",
        "ladder.rounds": "1",
        "tasks.splits": "{demo: 6, train: 6, dev: 8, test: 6}",
        "evaluation.n": "1",
        "evaluation.k": "[1]",
    }
    settings = load_settings(scripted, small)
    climb(settings, tmp_path / "plain")
    monkeypatch.setattr(bench, "open_policy", open_lasting)
    climb(settings, tmp_path / "lasting")
    plain, lasting = (
        {
            path.relative_to(run): [line for line in path.read_text().splitlines() if '"seconds"' not in line]
            for path in run.rglob("evaluation*.json")
        }
        for run in (tmp_path / "plain", tmp_path / "lasting")
    )
    assert len(plain) >= 3 and lasting == plain
    assert done == ["open scripted", "rest", "take up scripted-001-sft", "take up scripted", "close"]  # the last is for the test split


# ---------------------------------------------------------------- a real one


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnTheLoop]:
    policy = OnTheLoop(VllmPolicy(smollm(), vllm_settings(), tmp_path_factory.mktemp("run")))
    yield policy
    loop.run(policy.policy.close())


def leader_of(policy: VllmPolicy) -> int:
    assert policy._server is not None
    return policy._server._process.pid


@pytest.mark.real
async def test_many_conversations_of_many_turns(server: OnTheLoop) -> None:
    """Eight at once, three turns each: every prompt continues the ids that were sampled, and the ids say what the text says."""
    template = server.template

    async def talk(i: int) -> None:
        conversation = ask(f"Name a thing that starts with {'ABCDEFGH'[i]}.")
        for turn in range(3):
            done = await server.complete(conversation, Sampling(temperature=0.8, max_tokens=12, seed=i))
            prompt, output = done.tokens.prompt, done.tokens.output
            assert prompt is not None and output is not None
            assert list(prompt) == template.prompt(conversation.messages, conversation.turns)
            assert done.message.content == template.answer(output)
            assert (done.tokens.stop == "stop") == (output[-1] in template.end_ids) and (done.tokens.stop == "stop" or len(output) == 12)
            if conversation.turns:
                known = (*(conversation.turns[-1].prompt or ()), *(conversation.turns[-1].output or ()))
                assert prompt[: len(known)] == known
            conversation = Conversation(
                messages=(*conversation.messages, done.message, Message(role="user", content=f"And another, number {turn}?")),
                turns=(*conversation.turns, done.tokens),
            )

    await asyncio.gather(*(talk(i) for i in range(8)))


@pytest.mark.real
async def test_a_stranger_is_turned_away(server: OnTheLoop) -> None:
    await server.complete(ask("Hi"), GREEDY)
    assert server.policy._server is not None
    async with aiohttp.ClientSession() as session:
        for path in ("/health", "/v1/models"):
            assert (await session.get(server.policy._server.url + path)).status == 401
        sent = {"method": "sharpen_take_up", "kwargs": {"path": "/tmp"}}
        assert (await session.post(f"{server.policy._server.url}/collective_rpc", json=sent)).status == 401


def disturbed(model: Model, folder: Path, *, tied: bool = True) -> Model:
    """Other weights of the same shape, all of them, the embeddings above all: the output head shares them."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for file in Path(model.path).iterdir():
        if not file.name.startswith(".") and file.suffix != ".safetensors":
            shutil.copy(file, folder / file.name)
    torch.manual_seed(1)
    weights = load_file(Path(model.path) / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim == 2:
            weights[name] = (weight.float() + (0.3 if "embed" in name else 0.02) * weight.float().std() * torch.randn(weight.shape)).half()
    if not tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].roll(1, 0).contiguous()
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return open_folder(folder, folder.name)


async def greedy(policy: Policy) -> list[Any]:
    return [turn.tokens for turn in await asyncio.gather(*(policy.complete(ask(question), GREEDY) for question in QUESTIONS))]


@pytest.mark.real
async def test_new_weights_answer_without_a_new_start(server: OnTheLoop, tmp_path: Path) -> None:
    """The tokens after are those that transformers gives with the new folder, and with the old one again: neither head nor prefix cache is stale."""
    old, new = smollm(), disturbed(smollm(), tmp_path / "new")
    before = await greedy(server)
    leader = leader_of(server.policy)
    server.policy.take_up(new)
    after = await greedy(server)
    judge = TransformersPolicy(new, Transformers(device="cpu"))
    assert after == await greedy(judge)
    await judge.close()
    assert sum(a != b for a, b in zip(after, before, strict=True)) > len(QUESTIONS) / 2
    assert server.policy.log.read_text().count("Reloading and processing weights took") == 1  # asked for by six turns at once
    server.policy.take_up(old)
    assert await greedy(server) == before
    assert leader_of(server.policy) == leader


@pytest.mark.real
async def test_weights_that_do_not_fit_get_a_fresh_server(server: OnTheLoop, tmp_path: Path) -> None:
    """Another architecture cannot take the place of the old one."""
    untied = disturbed(smollm(), tmp_path / "untied", tied=False)
    await server.complete(ask("Hi"), GREEDY)
    leader = leader_of(server.policy)
    server.policy.take_up(untied)
    after = await greedy(server)
    assert leader_of(server.policy) != leader and not group(leader)
    judge = TransformersPolicy(untied, Transformers(device="cpu"))
    assert after == await greedy(judge)
    await judge.close()


@pytest.mark.real
async def test_a_dead_server_is_started_again_once(server: OnTheLoop) -> None:
    """vLLM's own process is killed: what was under way breaks, its children go too, the next turn finds a new server; not a third."""
    server.policy.take_up(smollm())
    await server.complete(ask("Hi"), GREEDY)
    for expected in (PolicyError, ModelError):
        leader = leader_of(server.policy)
        under_way = asyncio.create_task(server.complete(ask("Tell me a story."), Sampling(max_tokens=2000)))
        await asyncio.sleep(1)
        os.kill(
            next(pid for pid in group(leader) if b"sharpen_vllm.py" in Path(f"/proc/{pid}/cmdline").read_bytes() and pid != leader),
            signal.SIGKILL,
        )
        with pytest.raises(PolicyError, match=r"vLLM died: .*vllm.log"):
            await asyncio.wait_for(under_way, 30)
        wait_until(lambda leader=leader: not group(leader))
        if expected is PolicyError:
            assert (await server.complete(ask(SHORT), GREEDY)).message.content
        else:
            with pytest.raises(ModelError, match="died before"):
                await server.complete(ask(SHORT), GREEDY)
    server.policy._deaths, server.policy._broken = 0, None


@pytest.mark.real
async def test_resting_gives_the_memory_back(server: OnTheLoop) -> None:
    await server.complete(ask("Hi"), GREEDY)
    leader = leader_of(server.policy)
    loop.run(server.policy.rest())
    # vLLM's CPU worker cannot sleep, so there the server is gone; on a GPU it sleeps.
    assert server.policy._server is None or server.policy._server.asleep
    if server.policy._server is None:
        assert not group(leader)
    with pytest.raises(ContextOverflow, match="context of 4096"):
        await server.complete(ask(SHORT), Sampling(max_tokens=4096))
    assert (await server.complete(ask(SHORT), GREEDY)).message.content


RUN = """
import sys
import time
from pathlib import Path

import msgspec

from sharpen import loop
from sharpen.models import load_model
from sharpen.policies.base import Conversation, Sampling
from sharpen.policies.vllm import Vllm, VllmPolicy
from sharpen.records import Message

policy = VllmPolicy(load_model("smollm2-135m-instruct"), msgspec.json.decode(sys.argv[1], type=Vllm), Path(sys.argv[2]))
story = Conversation(messages=(Message(role="user", content="Tell me a story."),))
first = loop.submit(policy.complete(story, Sampling(max_tokens=1)))
while policy._server is None:
    time.sleep(0.1)
print(policy._server._process.pid, policy._server.url.rsplit(":", 1)[1], flush=True)
first.result()
print("up", flush=True)
loop.run(policy.complete(story, Sampling(max_tokens=3000)))
"""


@pytest.mark.real
@pytest.mark.parametrize("when", ["starting", "sampling"])
def test_kill_9_of_the_run_leaves_nothing(tmp_path: Path, when: str) -> None:
    smollm()
    sent = msgspec.json.encode(vllm_settings()).decode()
    run = subprocess.Popen([sys.executable, "-c", RUN, sent, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert run.stdout
    leader, port = map(int, run.stdout.readline().split())
    if when == "sampling":
        assert run.stdout.readline() == "up\n"
        assert len(group(leader)) > 3  # the leash, the server, its engine and its workers
    else:
        wait_until(lambda: len(group(leader)) > 2)  # the server has begun to start others
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait_until(lambda: not group(leader))
    wait_until(lambda: refuses(port))  # a little later: a leader is a zombie before its last thread has let go of the socket


@pytest.mark.real
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"args": ("--no-such-flag", "1")}, "unrecognized arguments: --no-such-flag"),
        ({"args": (), "gpu_memory": 1.0}, "memory"),
        ({"max_model_len": 100_000}, "max_model_len"),
    ],
)
async def test_a_start_that_fails_says_why_in_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    policy = VllmPolicy(smollm(), msgspec.structs.replace(vllm_settings(), **change), tmp_path)
    with pytest.raises(ModelError) as caught:
        await policy.complete(ask("Hi"), GREEDY)
    await policy.close()
    line = str(caught.value)
    assert said in line and "\n" not in line and line.endswith(f"(log: {tmp_path / 'vllm.log'})") and len(line) < 600


@pytest.mark.real
async def test_a_model_that_vllm_refuses_is_one_line(tmp_path: Path) -> None:
    model = disturbed(smollm(), tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchForCausalLM"]}))
    policy = VllmPolicy(load_model(model.path), vllm_settings(), tmp_path)
    with pytest.raises(ModelError, match=r"vLLM could not start with .*odd: .+ \(log: ") as caught:
        await policy.complete(ask("Hi"), GREEDY)
    await policy.close()
    assert "no reason" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "there", "picked"), [("cuda", True, "vllm"), ("cuda", False, "transformers"), ("mps", True, "transformers")]
)
def test_auto_takes_it_where_there_is_a_gpu_for_it(monkeypatch: pytest.MonkeyPatch, device: str, there: bool, picked: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(choose, "best_device", lambda: device)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: (object() if there else None) if name == "vllm" else found(name))
    model = Model(name="m", path="/nowhere", fingerprint="f", lineage=Lineage(base="m"))
    engine, why = choose.choose(model)
    assert engine.__struct_config__.tag == picked and f"a GPU ({device})" in why


def test_its_settings_are_part_of_a_run(scripted: Path) -> None:
    plain = yaml.safe_load(scripted.read_text())
    scripted.write_text(yaml.safe_dump(plain | {"engine": {"engine": "vllm", "python": "p", "args": ["--tensor-parallel-size", "2"]}}))
    assert load_settings(scripted, {"engine.gpu_memory": "0.5"}).engine == Vllm(
        python="p", args=("--tensor-parallel-size", "2"), gpu_memory=0.5
    )
