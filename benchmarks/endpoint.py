"""Requests per second against one mock OpenAI server on loopback, clients side by side: sharpen, a bare aiohttp loop, the ``openai`` client, others.

    python benchmarks/endpoint.py --out endpoint.json
    python benchmarks/endpoint.py --peer curator=/path/venv/bin/python --peer distilabel=/path/venv/bin/python
    python benchmarks/endpoint.py --memory 200000            # resident memory and descriptors of one long run

256 requests are in flight. Single-turn: one question, one answer. Multi-turn: ``--turns`` requests an episode, each but the last answered with a
tool call. The server is a process of its own, so is each arm, in each repeat; the clock runs from the first request to the last answer, without imports.
Sharpen plays the tasks as a run does (``collect``, an environment, token counts) and has every trajectory synced to disk as it ends; the others keep
nothing. ``store_share`` is the share of the time in which the store may hold up everything else: looking up, encoding, queueing and telling, by the
wall, and the processor time of the thread that writes, syncs and keeps where a record lies; what that waits for runs beside the requests.
``store_floor`` is the least that any store of these records takes, by the processor: encoding them with a bare msgspec, and writing and syncing the lines
as many at once as the store did (``synced_together``, on average). ``store_us`` and ``floor_us`` are the same for one try, in microseconds. ``cpu_us`` is
the client's processor time for a request, in microseconds. Arms alternate within a repeat, ratios are taken within a repeat, and medians over repeats are
printed. Curator and distilabel ask single questions only; they come from interpreters of their own, named with ``--peer``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable
from pathlib import Path
from typing import Any, NamedTuple

IN_FLIGHT = 256
PROMPT = "You see a door, a key and a long corridor. What do you do next? " * 6
PARAMETERS = {"type": "object", "properties": {"at": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": PARAMETERS}}
SEEN = "You see a door, a key and a long corridor. " * 4
ARMS = ("aiohttp", "sharpen", "openai", "openai-aiohttp")

# ---------------------------------------------------------------- the server


class Mock(asyncio.Protocol):
    """As little of HTTP as clients need, so that the client is what is measured. The path says the delay and the turns: ``/50/4/v1/...``."""

    answers = 0

    def __init__(self) -> None:
        self.data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.data[:end])
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if length is None and re.search(rb"(?i)transfer-encoding: *chunked", head):
                stop = self.data.find(b"0\r\n\r\n", end)
                if stop < 0:
                    return
                size = stop + 5
            else:
                size = end + 4 + (int(length[1]) if length else 0)
            if len(self.data) < size:
                return
            body = bytes(self.data[end + 4 : size])
            del self.data[:size]
            _, delay, turns = (head.split(b" ", 2)[1] + b"/0/0").split(b"/")[:3]
            if not delay.isdigit():
                delay, turns = b"0", b"1"
            wait = int(delay) / 1000 if head.startswith(b"POST") else 0
            answer = self.answer(head, body, int(turns))
            if wait:
                asyncio.get_running_loop().call_later(wait, self.transport.write, answer)
            else:
                self.transport.write(answer)

    def answer(self, head: bytes, body: bytes, turns: int) -> bytes:
        if head.startswith(b"GET"):
            path = head.split(b" ", 2)[1]
            status, text = (
                (b"200 OK", b'{"object":"list","data":[{"id":"m","object":"model"}]}')
                if path.endswith(b"/models")
                else (b"404 Not Found", b"{}")
            )
        else:
            Mock.answers += 1
            done = len(re.findall(rb'"role": ?"tool"', body)) + 1 >= turns
            call = {"id": f"call_{Mock.answers}", "type": "function", "function": {"name": "look", "arguments": '{"at": "door"}'}}
            said = {"content": "I take the key and open the door."} if done else {"content": None, "tool_calls": [call]}
            choice = {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": "stop" if done else "tool_calls"}
            usage = {"prompt_tokens": len(body) // 4, "completion_tokens": 10, "total_tokens": len(body) // 4 + 10}
            about = {"id": f"c{Mock.answers}", "object": "chat.completion", "created": 1, "model": "m"}
            status, text = b"200 OK", json.dumps({**about, "choices": [choice], "usage": usage}).encode()
        return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# ---------------------------------------------------------------- the arms: each gives (seconds, more)


class Spent(NamedTuple):
    """Seconds by the wall, and of this process on the processor."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Spent:
        return cls(time.perf_counter(), time.process_time())

    def since(self) -> Spent:
        return Spent(time.perf_counter() - self.wall, time.process_time() - self.cpu)


Ask = Callable[[list[dict[str, Any]]], Awaitable[dict[str, Any]]]


def question(i: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"{i} {PROMPT}"}]


async def episodes(ask: Ask, number: int, turns: int) -> Spent:
    """Play ``number`` episodes by hand, IN_FLIGHT at once."""
    left = iter(range(number))

    async def worker() -> None:
        for i in left:
            messages = question(i)
            for _ in range(turns):
                message = await ask(messages)
                messages.append(message)
                messages += [{"role": "tool", "tool_call_id": call["id"], "content": SEEN} for call in message.get("tool_calls") or ()]

    began = Spent.now()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return began.since()


def body(messages: list[dict[str, Any]], turns: int) -> dict[str, Any]:
    given = {"model": "m", "messages": messages, "temperature": 1.0, "top_p": 1.0, "max_tokens": 256, "seed": 1}
    return given | ({"tools": [TOOL]} if turns > 1 else {})


async def bare(url: str, number: int, turns: int) -> tuple[Spent, dict[str, Any]]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
            async with session.post(f"{url}/chat/completions", json=body(messages, turns)) as response:
                message: dict[str, Any] = (await response.json())["choices"][0]["message"]
                return message

        await ask(question(0))
        return await episodes(ask, number, turns), {}


async def openai_client(url: str, number: int, turns: int, *, transport: bool) -> tuple[Spent, dict[str, Any]]:
    import openai

    more = {"http_client": openai.DefaultAioHttpClient()} if transport else {}
    async with openai.AsyncOpenAI(base_url=url, api_key="none", **more) as client:  # type: ignore[arg-type]

        async def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
            answer = await client.chat.completions.create(**body(messages, turns))
            found: dict[str, Any] = answer.choices[0].message.model_dump(exclude_none=True)
            return found

        await ask(question(0))
        return await episodes(ask, number, turns), {}


async def sharpen(url: str, number: int, turns: int, watch: Callable[[int], None] = lambda done: None) -> tuple[Spent, dict[str, Any]]:
    from contextlib import asynccontextmanager

    import msgspec

    from sharpen.agents.base import PolicyAgent
    from sharpen.environments.single_turn import SingleTurn
    from sharpen.environments.tools import Limits, Toolbox, ToolEnvironment
    from sharpen.policies.base import Sampling
    from sharpen.policies.endpoint import Endpoint, EndpointPolicy
    from sharpen.records import Message, Task, Trajectory, Verdict
    from sharpen.sampling import collect
    from sharpen.store.segments import Segments, _Coming

    async def look(arguments: dict[str, Any]) -> str:
        return SEEN

    @asynccontextmanager
    async def tools(task: Task) -> AsyncIterator[Toolbox]:
        yield Toolbox((TOOL,), {"look": look})

    spent = defaultdict[int, float](float)  # by thread, since two add to it; a list of them all would be what --memory sees grow

    def timed(step: Callable[..., Any], clock: Callable[[], float] = time.perf_counter) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            began = clock()
            try:
                return step(*given)
            finally:
                spent[threading.get_ident()] += clock() - began

        return run

    class Step:
        """What a coroutine does each time it goes on."""

        def __init__(self, work: Coroutine[Any, Any, None]) -> None:
            self.send = timed(work.send)

        def __await__(self) -> Generator[Any, Any, None]:
            try:
                while True:
                    yield self.send(None)
            except StopIteration:
                return

    class Coming(_Coming):
        __enter__, __exit__ = timed(_Coming.__enter__), timed(_Coming.__exit__)

    class Timed(Segments):  # type: ignore[type-arg]
        _find, _tell = timed(Segments._find), staticmethod(timed(Segments._tell))
        _drain = timed(Segments._drain, time.thread_time)
        groups = 0

        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.coming = Coming()

        def _write(self, lines: Any) -> Any:
            self.groups += 1
            return super()._write(lines)

        async def add(self, record: Any) -> None:
            await Step(super().add(record))

    def floor(records: Iterable[Trajectory], together: int, path: Path) -> float:
        """Seconds of the processor."""
        encode, took = msgspec.json.Encoder().encode, 0.0
        handle, left = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), iter(records)
        while group := list(itertools.islice(left, together)):
            began = time.thread_time()
            os.write(handle, b"\n".join(map(encode, group)))
            os.fdatasync(handle)
            took += time.thread_time() - began
        os.close(handle)
        return took

    environment: Any = SingleTurn() if turns == 1 else ToolEnvironment("bench", tools, Limits(max_turns=turns))
    policy = EndpointPolicy(Endpoint(base_url=url, model="m"))
    agent = PolicyAgent("m", policy, "f", environment, Sampling())
    tasks = ((Task(key=f"t{i}", family="f", prompt=(Message(role="user", content=question(i)[0]["content"]),)), 0) for i in range(number))
    with tempfile.TemporaryDirectory(dir=os.environ.get("SHARPEN_BENCH_DIR")) as folder:
        trajectories, verdicts = Timed(Path(folder) / "t", Trajectory), Segments(Path(folder) / "v", Verdict)
        done = errors = 0
        began = Spent.now()
        async for trajectory, _ in collect(agent, tasks, None, trajectories, verdicts, concurrency=IN_FLIGHT):
            done += 1
            errors += trajectory.stop != "done"
            watch(done)
        took = began.since()
        trajectories.close()
        store = sum(spent.values())
        together = done / trajectories.groups
        least = floor(trajectories.records.values(), round(together), Path(folder) / "floor")
    limit = policy._balancer.servers[0].limit.value
    await policy.close()
    about = {
        "store_share": round(store / took.wall, 4),
        "store_floor": round(least / took.wall, 4),
        "store_us": round(store / done * 1e6, 1),
        "floor_us": round(least / done * 1e6, 1),
        "synced_together": round(together, 1),
    }
    return took, {**about, "errors": errors, "limit": round(limit), **policy.counts}


async def sharpen_policy(url: str, number: int, turns: int, watch: Callable[[int], None]) -> tuple[Spent, dict[str, Any]]:
    """The policy alone, without agents and store."""
    from sharpen.policies.base import Conversation, Sampling
    from sharpen.policies.endpoint import Endpoint, EndpointPolicy
    from sharpen.records import Message

    policy = EndpointPolicy(Endpoint(base_url=url, model="m"))
    done = 0

    async def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
        nonlocal done
        turn = await policy.complete(Conversation(messages=(Message(role="user", content=messages[0]["content"]),)), Sampling())
        done += 1
        watch(done)
        return {"role": "assistant", "content": turn.message.content}

    took = await episodes(ask, number, 1)
    await policy.close()
    return took, {}


async def curator(url: str, number: int, turns: int) -> tuple[Spent, dict[str, Any]]:
    os.environ |= {"CURATOR_DISABLE_CACHE": "1", "TELEMETRY_ENABLED": "0", "OPENAI_API_KEY": "none", "CURATOR_VIEWER": "0"}
    import tiktoken

    # Its token counter would fetch a vocabulary from the network; counting words costs it less.
    tiktoken.get_encoding = tiktoken.encoding_for_model = lambda *_, **__: type(
        "Words", (), {"encode": lambda self, text, **_: text.split()}
    )()  # type: ignore[assignment,misc]
    from bespokelabs import curator as library

    class Ask(library.LLM):  # type: ignore[misc]
        def prompt(self, row: dict[str, Any]) -> str:
            return str(row["q"])

        def parse(self, row: dict[str, Any], response: Any) -> dict[str, Any]:
            return {"a": response}

    limits = {"max_requests_per_minute": 10**8, "max_tokens_per_minute": 10**10, "max_concurrent_requests": IN_FLIGHT, "base_url": url}
    asker = Ask(model_name="m", backend="openai", backend_params=limits, generation_params={"max_tokens": 256})

    def run() -> Spent:
        rows = [{"q": question(i)[0]["content"]} for i in range(number)]
        with tempfile.TemporaryDirectory() as folder:
            began = Spent.now()
            answered = asker(rows, working_dir=folder)
            took = began.since()
        assert len(getattr(answered, "dataset", answered)) == number
        return took

    return await asyncio.to_thread(run), {}


async def distilabel(url: str, number: int, turns: int) -> tuple[Spent, dict[str, Any]]:
    from distilabel.models.llms import OpenAILLM

    llm = OpenAILLM(model="m", base_url=url, api_key="none")
    llm.load()

    async def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
        found = await llm.agenerate(input=messages, max_new_tokens=256)
        return {"role": "assistant", "content": found["generations"][0]}

    await ask(question(0))
    return await episodes(ask, number, 1), {}


def arm(name: str, url: str, number: int, turns: int) -> tuple[Spent, dict[str, Any]]:
    match name:
        case "aiohttp":
            work = bare(url, number, turns)
        case "sharpen":
            work = sharpen(url, number, turns)
        case "openai":
            work = openai_client(url, number, turns, transport=False)
        case "openai-aiohttp":
            work = openai_client(url, number, turns, transport=True)
        case "curator":
            work = curator(url, number, turns)
        case _:
            work = distilabel(url, number, turns)
    return asyncio.run(work)


# ---------------------------------------------------------------- memory


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(url: str, number: int, through: str) -> dict[str, Any]:
    """Resident memory and descriptors after 10,000 requests and at the end. ``through`` the policy alone, or a whole run with its store."""
    marks: list[tuple[int, int, int]] = []

    def watch(done: int) -> None:
        if done % 5000 == 0:
            gc.collect()
            marks.append((done, resident(), sum(1 for _ in Path("/proc/self/fd").iterdir())))

    work = sharpen_policy if through == "policy" else sharpen
    took, _ = asyncio.run(work(url, number, 1, watch))
    first = next(mark for mark in marks if mark[0] >= min(10_000, number))
    last = marks[-1]
    return {
        "through": through,
        "requests": number,
        "requests_a_second": round(number / took.wall),
        "mib": [round(m[1] / 2**20, 1) for m in marks[:: max(1, len(marks) // 10)]],
        "growth_after_first_10000": round(last[1] / first[1] - 1, 4),
        "descriptors": [first[2], last[2]],
    }


# ---------------------------------------------------------------- all together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000, help="of each arm in each repeat")
    parser.add_argument("--turns", type=int, default=4, help="requests of an episode in the multi-turn list")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--delays", type=int, nargs="*", default=[50, 0], help="milliseconds that the server takes")
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--peer", action="append", default=[], help="curator=PYTHON or distilabel=PYTHON; openai=PYTHON for another openai")
    parser.add_argument("--memory", type=int, default=0, help="instead: one run of so many requests")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve())
        return
    if given.arm:
        if given.memory:
            print(json.dumps(memory(given.url, given.memory, given.arm)))
        else:
            number = given.requests // given.turns * given.turns
            took, more = arm(given.arm, given.url, number // given.turns, given.turns)
            print(json.dumps({"rate": number / took.wall, "cpu_us": round(took.cpu / number * 1e6), **more}))
        return

    pythons = dict.fromkeys(ARMS, sys.executable) | dict(peer.split("=", 1) for peer in given.peer)
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())

        def run(name: str, url: str, *more: str) -> dict[str, Any]:
            asked = [pythons.get(name, sys.executable), __file__, "--arm", name, "--url", url, *more]
            ended = subprocess.run(asked, capture_output=True, text=True, timeout=3600)
            if ended.returncode:
                lines = ended.stderr.strip().splitlines() or ["no word"]
                return {"failed": next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), lines[-1])[:300]}
            found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
            return found

        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
        result: dict[str, Any] = {
            "commit": commit,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
        if given.memory:
            url = f"http://127.0.0.1:{port}/0/1/v1"
            result["memory"] = [run(through, url, "--memory", str(given.memory)) for through in ("policy", "store")]
        else:
            names = [*given.arms, *(name for name in ("curator", "distilabel") if name in pythons)]
            result |= {"requests": given.requests, "repeats": given.repeats, "in_flight": IN_FLIGHT, "lists": {}}
            for delay in given.delays:
                for turns in (1, given.turns):
                    url = f"http://127.0.0.1:{port}/{delay}/{turns}/v1"
                    some = [name for name in names if turns == 1 or name in ARMS]
                    rows = [
                        {name: run(name, url, "--requests", str(given.requests), "--turns", str(turns)) for name in some}
                        for _ in range(given.repeats)
                    ]
                    result["lists"][f"{delay} ms, {turns} turn{'s' * (turns > 1)}"] = summary(rows, some)
        text = json.dumps(result, indent=1)
        print(text)
        if given.out:
            given.out.write_text(text + "\n")
    finally:
        server.terminate()
        server.wait()


def summary(rows: list[dict[str, dict[str, Any]]], names: list[str]) -> dict[str, Any]:
    """Median rate of each arm, and the median, least and largest of sharpen's ratio to it, each taken within a repeat."""
    found: dict[str, Any] = {}
    for name in names:
        runs = [row[name] for row in rows]
        if any("failed" in one for one in runs):
            found[name] = next(one for one in runs if "failed" in one)
            continue
        found[name] = {key: round(statistics.median(one[key] for one in runs)) for key in ("rate", "cpu_us")}
        if name == "sharpen":
            found[name] |= {key: value for key, value in runs[-1].items() if key not in ("rate", "cpu_us")}
        elif all("rate" in row.get("sharpen", {}) for row in rows):
            ratios = [row["sharpen"]["rate"] / row[name]["rate"] for row in rows]
            found[name]["sharpen_to_it"] = [round(f(ratios), 2) for f in (statistics.median, min, max)]
    return found


if __name__ == "__main__":
    main()
