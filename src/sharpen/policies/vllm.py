"""vLLM as a server that belongs to the run: the engine for GPUs. Token ids in, token ids out.

In an interpreter of its own where the settings name one, because vLLM holds torch and transformers to its own versions. What it is asked is plain
``/v1/completions`` on prompt ids, so that any chat template is exact. A new model folder is loaded in place of the old weights (merged, as saved),
not as a LoRA adapter: an adapter's product is added in the engine's precision, so its numbers would not be those of the folder that ships.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import aiohttp
import msgspec

from sharpen.chat.template import ChatTemplate
from sharpen.errors import ModelError, PolicyError
from sharpen.models import read_config
from sharpen.policies import leash
from sharpen.policies.base import Conversation, Sampling, Turn, turn_seed
from sharpen.policies.tokens import prompt_of, turn_of
from sharpen.records import Model, Record

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_DIE = 30.0  # a killed process gives its memory back when it is gone, which takes a while for many gigabytes
LOGPROBS = ("--logprobs-mode", "processed_logprobs")  # under temperature and top-p, as TurnTokens has them
_SIDE = Path(__file__).parent / "vllm_side"
_ASIDE = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")  # of config.json: may differ where only weights do


class Vllm(Record, frozen=True, kw_only=True, tag_field="engine", tag="vllm"):
    """Settings of the vLLM engine.

    ``python`` is the interpreter that has vLLM ("": this one); ``args`` go to vLLM's server as they are. ``gpu_memory`` in [0, 1] is the share of the
    device's memory that it may fill (0: vLLM's own default), ``max_model_len`` the context in tokens (0: the model's own); ``startup_s`` is how long
    a start may take. ``precision`` auto is bf16 on GPUs and f32 on CPUs; f32 gives the tokens that transformers gives. ``keep`` leaves the server
    up from round to round, asleep during training; without it, each model gets a fresh server.
    """

    python: str = ""
    args: tuple[str, ...] = ()
    gpu_memory: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    max_model_len: Annotated[int, msgspec.Meta(ge=0)] = 0
    precision: Literal["auto", "f32", "bf16"] = "auto"
    startup_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    keep: bool = True


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float]


class _Choice(msgspec.Struct):
    finish_reason: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    logprobs: _Logprobs | None = None


class _Completion(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1, max_length=1)]


class VllmPolicy:
    """A model folder on a vLLM server that the first turn starts, and that ends with this process, however that ends.

    The seed of a turn comes from ``sampling.seed`` and its prompt's ids, so the same try gives the same tokens whatever runs beside it, as far as
    float sums allow. All calls must come from one event loop. A server that cannot start is a ModelError, one that dies a PolicyError; the next
    turn starts it again, once.
    """

    gives_token_ids = True

    def __init__(self, model: Model, settings: Vllm | None = None, logs: Path | None = None) -> None:
        self.settings = settings or Vllm()
        self.log = (logs or Path(tempfile.mkdtemp(prefix="sharpen-"))) / "vllm.log"
        self._server: _Server | None = None
        self._lock = asyncio.Lock()
        self._broken: ModelError | None = None
        self._deaths = 0
        self._closed = False
        self.take_up(model)

    def take_up(self, model: Model) -> None:
        """From the next turn on, continue as ``model``, whose weights are then loaded without a new start where they fit in the old ones' place."""
        self.name = model.name
        self.template = ChatTemplate.load(model.path)
        self._model = model

    async def rest(self) -> None:
        """Give the memory back: vLLM sleeps where it can (on GPUs), and is ended where not."""
        async with self._lock:
            with contextlib.suppress(PolicyError):
                if self._server is not None and self.settings.keep and await self._server.sleep():
                    return
            await self._end()

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        """The next turn. ContextOverflow where prompt and ``max_tokens`` exceed the context, PolicyError where the server has died."""
        server = await self._ready()
        prompt = prompt_of(self.template, conversation, sampling, server.context)
        body = {
            "model": "sharpen",
            "prompt": prompt,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": turn_seed(sampling.seed, prompt),
            "stop_token_ids": sorted(self.template.end_ids),
            "ignore_eos": True,  # else the folder's generation_config.json may end turns with ids that are no ends here
            "skip_special_tokens": False,
            "return_token_ids": True,
            "cache_salt": self._model.fingerprint,  # keys and values of other weights are never taken for these
            "logprobs": 0 if sampling.temperature > 0 else None,  # of what is sampled, and of nothing beside it
        }
        answer = await server.ask("/v1/completions", body)
        try:
            choice = msgspec.json.decode(answer, type=_Completion).choices[0]
        except msgspec.DecodeError as error:
            raise PolicyError(f"vLLM answered with something else than a completion with token ids: {error}") from error
        if choice.finish_reason not in ("stop", "length") or not choice.token_ids:
            raise PolicyError(f"vLLM ended a turn with {choice.finish_reason!r} (log: {self.log})")
        if choice.prompt_token_ids != prompt:
            raise PolicyError(f"vLLM read another prompt than it was sent (log: {self.log})")
        logprob = sum(choice.logprobs.token_logprobs) if choice.logprobs is not None else None
        return turn_of(self.template, conversation, prompt, choice.token_ids, logprob)

    async def close(self) -> None:
        """End the server; whoever still waits gets a PolicyError."""
        self._closed = True
        if self._server is not None:
            await self._server.end()

    async def _ready(self) -> _Server:
        """The server, awake and with this model's weights in it."""
        if (server := self._current()) is not None:
            return server
        work = asyncio.ensure_future(self._prepare())
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # where nobody waits any more, nobody is told
        return await asyncio.shield(work)  # one conversation that is cancelled does not end what the others wait for

    def _current(self) -> _Server | None:
        server = self._server
        if self._closed or server is None or server.dead() or server.asleep or server.fingerprint != self._model.fingerprint:
            return None
        return server

    async def _prepare(self) -> _Server:
        async with self._lock:
            if (server := self._current()) is not None:  # whoever had the lock before has done it
                return server
            if self._broken is not None:
                raise self._broken
            if self._server is not None and self._server.dead() and not self._closed:
                self._deaths += 1
                if self._deaths > 1:
                    self._broken = ModelError(f"{self._server.died()}; it died before, so it is not started again")
                    raise self._broken
                await self._end()
            if self._server is not None and not self._closed and self._fits(self._server):
                with contextlib.suppress(PolicyError):  # it cannot load these: its log says why, and a fresh one can
                    await self._server.load(self._model)
                    return self._server
            await self._end()
            if self._closed:
                raise PolicyError(f"the policy {self.name} is closed")
            self._server = _Server(self._model, self.settings, self.log)
            try:
                await self._server.start()
            except ModelError as error:
                self._broken = error
                raise
            return self._server

    async def _end(self) -> None:
        if self._server is not None:
            await self._server.end()
            self._server = None

    def _fits(self, server: _Server) -> bool:
        """Whether the model differs from the server's in its weights only."""
        kept = [{k: v for k, v in read_config(path).items() if k not in _ASIDE} for path in (server.path, self._model.path)]
        return self.settings.keep and kept[0] == kept[1]


class _Server:
    """One vLLM process group on a loopback port, and what is in it."""

    def __init__(self, model: Model, settings: Vllm, log: Path) -> None:
        self.settings = settings
        self.log = log
        self.path, self.fingerprint = model.path, ""
        self._starting = model.fingerprint
        self.asleep = False
        self.context = 0
        self._sleeps = False
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        key = secrets.token_hex(16)
        python = settings.python or sys.executable
        command = [
            *(sys.executable, leash.__file__, str(os.getpid())),
            *(python, str(_SIDE / "sharpen_vllm.py"), "--model", model.path, "--served-model-name", "sharpen"),
            *("--host", "127.0.0.1", "--port", str(port), "--middleware", "sharpen_vllm.Guard"),
            *("--worker-extension-cls", "sharpen_vllm.Worker", "--generation-config", "vllm", "--disable-uvicorn-access-log"),
        ]
        if settings.gpu_memory:
            command += ["--gpu-memory-utilization", str(settings.gpu_memory)]
        if settings.max_model_len:
            command += ["--max-model-len", str(settings.max_model_len)]
        if settings.precision != "auto":
            command += ["--dtype", {"f32": "float32", "bf16": "bfloat16"}[settings.precision]]
        log.parent.mkdir(parents=True, exist_ok=True)
        self._since = log.stat().st_size if log.exists() else 0
        try:
            with log.open("ab") as stream:
                self._process = subprocess.Popen(
                    [*command, *settings.args, *LOGPROBS],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=_environment(settings.python, key),
                    start_new_session=True,
                )
        except OSError as error:
            raise ModelError(f"vLLM cannot be started: {error}") from error
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # vLLM queues, and as many wait as there are conversations
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )

    async def start(self) -> None:
        """Wait until it answers. ModelError with the last error of its log where it ends before, or takes longer than ``startup_s``."""
        began = time.monotonic()
        while True:
            if self.dead():
                why = _last_error(self._written())
                hints = {
                    "No module named 'vllm'": "; name the interpreter that has it in engine.python",
                    "gpu-memory-util": "; set engine.gpu_memory",
                }
                hint = next((hint for said, hint in hints.items() if said in why.replace("_", "-")), "")
                raise ModelError(f"vLLM could not start with {self.path}: {why}{hint} (log: {self.log})")
            with contextlib.suppress(aiohttp.ClientError):
                async with self._session.get(f"{self.url}/health") as response:
                    if response.status == 200:
                        break
            if time.monotonic() - began > self.settings.startup_s:
                raise ModelError(f"vLLM did not start within {self.settings.startup_s:g} s (log: {self.log}); raise engine.startup_s")
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        models = msgspec.json.decode(await self.ask("/v1/models"))
        self.context = int(models["data"][0]["max_model_len"])
        self._sleeps = (await self._tell("sharpen_sleeps"))[0]["sleeps"]
        self.fingerprint = self._starting

    async def load(self, model: Model) -> None:
        """Put the weights of ``model`` in the place of those there, awake or asleep."""
        if self.asleep:
            await self.ask("/wake_up?tags=weights", {})
        self.fingerprint = ""  # until they are whole, they are nobody's
        await self._tell("sharpen_take_up", path=model.path)
        if self.asleep:
            await self.ask("/wake_up?tags=kv_cache", {})
        self.path, self.fingerprint, self.asleep = model.path, model.fingerprint, False

    async def sleep(self) -> bool:
        """Give the GPU's memory back, weights and cache. False where this vLLM cannot, or is dead."""
        if not self._sleeps or self.dead():
            return False
        if not self.asleep:
            await self.ask("/sleep?level=2", {})  # the weights are not copied to main memory: other ones will come
            self.asleep = True
        return True

    async def end(self) -> None:
        """Kill the process group and wait until its memory is free. Calling it twice is harmless."""
        await self._session.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        deadline = time.monotonic() + SECONDS_TO_DIE
        while _living(self._process.pid) and time.monotonic() < deadline:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    def dead(self) -> bool:
        return self._process.poll() is not None

    def died(self) -> str:
        return f"vLLM died: {_last_error(self._written())} (log: {self.log})"

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """GET, or POST where there is a ``body``. PolicyError, one line, for any answer but 200."""
        sent = self._session.get(self.url + path) if body is None else self._session.post(self.url + path, data=msgspec.json.encode(body))
        try:
            async with sent as response:
                content = await response.read()
        except (aiohttp.ClientError, RuntimeError) as error:  # RuntimeError: the session was closed meanwhile
            raise PolicyError(self.died()) from error
        if response.status != 200:
            said = " ".join(content.decode(errors="replace").split())[:300]
            raise PolicyError(f"vLLM answered {response.status}: {said} (log: {self.log})")
        return content

    async def _tell(self, method: str, **arguments: str) -> Any:
        return msgspec.json.decode(await self.ask("/collective_rpc", {"method": method, "kwargs": arguments}))["results"]

    def _written(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self._since)
            return file.read().decode(errors="replace")


def _living(group: int) -> bool:
    """Whether the process group still has members that are no zombies; False where there is no /proc to tell."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile
            state, _, its = stat.read_text().rpartition(") ")[2].split()[:3]
            if int(its) == group and state != "Z":
                return True
    return False


def _environment(python: str, key: str) -> dict[str, str]:
    """The server's environment. What it asks of the network only the user's own settings may allow."""
    tools = str(Path(python or sys.executable).parent.absolute())
    added = [str(_SIDE), *([os.environ["PYTHONPATH"]] if not python and os.environ.get("PYTHONPATH") else [])]
    defaults = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    ours = {
        "SHARPEN_VLLM_KEY": key,
        "PYTHONPATH": os.pathsep.join(added),  # this interpreter's own additions are not for another one
        "PATH": os.pathsep.join([tools, os.environ.get("PATH", os.defpath)]),  # vLLM calls ninja
        "PYTHONSAFEPATH": "1",  # a file in the user's folder must not be imported in place of a library
        "VLLM_SERVER_DEV_MODE": "1",  # sleeping and loading weights
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "86400",  # else a connection may be closed while a request is on its way
    }
    return defaults | dict(os.environ) | ours


def _last_error(log: str) -> str:
    """The last line of a log that names an error and its cause, without vLLM's prefixes."""
    found = "no reason given"
    lines = [re.sub(r"^(\(\w+ pid=\d+\) )?(\w+ [\d-]+ [\d:]+ \[[^]]+\] )?", "", line).strip() for line in log.splitlines()]
    for line, after in zip(lines, [*lines[1:], ""], strict=False):
        if (match := re.search(r"(?:^|[\s.])(\w*(?:Error|Exception|error): .+)$", line)) and not re.search("See .*root cause", line):
            found = after if "validation error" in line else match[1]
    return re.sub(r" \[type=.*", "", found)[:300]
