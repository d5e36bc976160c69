"""OpenVINO GenAI: continuous batching with a prefix cache, the fastest engine on x86 CPUs. Token ids in, token ids out."""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec.structs import replace

from sharpen.chat.template import ChatTemplate
from sharpen.errors import ModelError, PolicyError
from sharpen.frames import Frames, write_frame
from sharpen.models import read_config
from sharpen.policies.base import Conversation, Sampling, Turn, turn_seed
from sharpen.policies.futures import settle
from sharpen.policies.gguf_file import why_not, write_gguf
from sharpen.policies.openvino_engine import Cancel, Ready, Request, Result, Setup
from sharpen.policies.tokens import prompt_of, turn_of
from sharpen.records import Model, Record


class OpenVino(Record, frozen=True, kw_only=True, tag_field="engine", tag="openvino"):
    """Settings of the OpenVINO engine.

    ``precision`` auto is bf16 where the CPU computes in it, else f32; f32 gives the tokens that transformers gives. ``cache_gb`` holds keys and
    values (0: a quarter of this machine's memory); a smaller cache forgets prefixes and is slower, never wrong. ``batch_tokens`` bounds one step.
    """

    precision: Literal["auto", "f32", "bf16"] = "auto"
    cache_gb: Annotated[int, msgspec.Meta(ge=0)] = 0
    batch_tokens: Annotated[int, msgspec.Meta(ge=32)] = 1024
    max_concurrent: Annotated[int, msgspec.Meta(ge=1)] = 256
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0


class OpenVinoPolicy:
    """A model folder on OpenVINO.

    The seed of a turn comes from ``sampling.seed`` and its prompt's ids, so the same try gives the same tokens whatever runs beside it,
    as far as float sums allow: another batch may round a logit differently in its last bit, which rarely turns a sampled token.
    """

    gives_token_ids = True

    def __init__(self, model: Model, settings: OpenVino | None = None) -> None:
        settings = settings or OpenVino()
        config = read_config(model.path)
        if reason := why_not(config):
            raise ModelError(f"{model.name} cannot run on OpenVINO: {reason}; use the transformers engine")
        self.name = model.name
        self.template = ChatTemplate.load(model.path)
        self.context = int(config["max_position_embeddings"])
        self.precision = best_precision() if settings.precision == "auto" else settings.precision
        settings = replace(settings, precision=self.precision)
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[Result]] = {}
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[Request | Cancel | None] = queue.SimpleQueue()
        self._dead = ""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the policy)
        # -P: a file in the user's folder must not be imported in place of a library
        command = [sys.executable, "-P", "-m", "sharpen.policies.openvino_engine"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, bufsize=0)
        assert self._process.stdin and self._process.stdout
        self._frames = Frames(self._process.stdout.fileno(), Ready | Result)
        try:
            self._load(model, settings)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self._threads = [threading.Thread(target=work, daemon=True, name=f"openvino-{work.__name__}") for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        """The next turn. ContextOverflow where prompt and ``max_tokens`` exceed the context, PolicyError where the engine has died."""
        prompt = prompt_of(self.template, conversation, sampling, self.context)
        request = Request(
            id=next(self._ids),
            prompt=prompt,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=turn_seed(sampling.seed, prompt) & 0xFFFFFFFF,  # the engine's generator takes 32 bits
            end_ids=sorted(self.template.end_ids),
        )
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._dead:
                raise PolicyError(self._dead)
            self._waiting[request.id] = future
        self._outbox.put(request)
        try:
            result = await future
        except asyncio.CancelledError:
            with self._lock:
                self._waiting.pop(request.id, None)
            self._outbox.put(Cancel(request.id))
            raise
        # Of greedy turns it tells none, and after top-p some versions tell shares of the whole, not of what is left.
        told = sampling.temperature > 0 and sampling.top_p == 1
        return turn_of(self.template, conversation, prompt, result.output, result.logprob if told else None)

    async def close(self) -> None:
        """End the engine's process; whoever still waits gets a PolicyError."""
        self._die(f"the policy {self.name} is closed")
        self._outbox.put(None)
        self._process.kill()
        for thread in self._threads:
            thread.join()
        self._process.wait()
        self._log.close()

    def _load(self, model: Model, settings: OpenVino) -> None:
        assert self._process.stdin
        properties, scheduler = pipeline_settings(settings)
        with tempfile.TemporaryDirectory(prefix="sharpen-") as folder:
            file = Path(folder) / "model.gguf"
            write_gguf(model.path, file)
            write_frame(self._process.stdin.fileno(), Setup(str(file), properties, scheduler))
            frames: list[Ready | Result] | None = []
            while frames == []:
                frames = self._frames.read()
        if frames is None:
            raise PolicyError(f"OpenVINO could not load {model.name}: {self._last_line()}")
        self.load_seconds = frames[0].seconds if isinstance(frames[0], Ready) else 0.0

    def _write(self) -> None:
        assert self._process.stdin
        while (message := self._outbox.get()) is not None:
            try:
                write_frame(self._process.stdin.fileno(), message)
            except OSError:
                return  # the engine is gone; the reader says so

    def _read(self) -> None:
        while (frames := self._frames.read()) is not None:
            for frame in frames:
                with self._lock:
                    future = self._waiting.pop(frame.id, None)
                if future is not None:
                    settle(future, PolicyError(f"OpenVINO: {frame.error}") if frame.error else frame)
        self._die(f"the OpenVINO engine died: {self._last_line()}")

    def _die(self, why: str) -> None:
        with self._lock:
            self._dead = self._dead or why
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            settle(future, PolicyError(self._dead))

    def _last_line(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.poll()}"


def pipeline_settings(settings: OpenVino) -> tuple[dict[str, str | int], dict[str, int | bool]]:
    """Properties and scheduler settings under OpenVINO's own names."""
    precision = best_precision() if settings.precision == "auto" else settings.precision
    properties: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision}
    if settings.threads:
        properties["INFERENCE_NUM_THREADS"] = settings.threads
    scheduler: dict[str, int | bool] = {
        "cache_size": settings.cache_gb or max(1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 32),
        "max_num_batched_tokens": settings.batch_tokens,
        "max_num_seqs": settings.max_concurrent,
        "enable_prefix_caching": True,
        "dynamic_split_fuse": True,
    }
    return properties, scheduler


def best_precision() -> Literal["f32", "bf16"]:
    """What OpenVINO itself says this CPU computes in: bf16 without hardware for it is far slower than f32."""
    import openvino

    return "bf16" if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
