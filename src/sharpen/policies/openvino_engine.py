"""The OpenVINO engine, in a process of its own: ``python -m sharpen.policies.openvino_engine``, frames on stdin and stdout.

Its own process because ``step`` holds Python's lock for as long as it computes (seconds, on a CPU): in the caller's process no environment
and no event loop could run meanwhile. The process ends when its stdin does, so that it never outlives its owner.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Any

import msgspec

from sharpen.frames import Frames, write_frame

BLOCK = 32  # tokens in a block of OpenVINO's key-value cache on CPUs: what prefix caching can reuse


class Setup(msgspec.Struct, tag=True):
    """What to load and how: properties and scheduler settings by OpenVINO's own names."""

    gguf: str
    properties: dict[str, Any]
    scheduler: dict[str, int | bool]


class Request(msgspec.Struct, tag=True):
    """One turn to sample. ``end_ids`` stop it and are part of the output."""

    id: int
    prompt: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    end_ids: list[int]


class Cancel(msgspec.Struct, tag=True):
    id: int


class Ready(msgspec.Struct, tag=True):
    """The engine is loaded."""

    seconds: float


class Result(msgspec.Struct, tag=True):
    """The output of one request and its log-probability as OpenVINO tells it, or why there is none."""

    id: int
    output: list[int]
    error: str = ""
    logprob: float = 0.0


class Gate:
    """Decides which waiting requests the engine gets now.

    OpenVINO looks for cached prefixes when a request is added, so of many requests that begin alike and come at once, each would compute the
    whole prefix. The gate lets one go ahead and holds the others back until its prompt is in the cache.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting: dict[int, tuple[Request, list[int]]] = {}
        self.computing: dict[int, list[int]] = {}
        self.cached: set[int] = set()

    def put(self, request: Request) -> None:
        self.waiting[request.id] = (request, _blocks(request.prompt))

    def admit(self, running: int) -> list[Request]:
        """Take out the requests that can use nothing of what is being computed, oldest first, up to the limit."""
        if len(self.cached) > 1_000_000:
            self.cached.clear()  # only a hint: the worst is a prefix computed twice
        busy = {block for blocks in self.computing.values() for block in blocks}
        admitted: list[Request] = []
        for request, blocks in list(self.waiting.values()):
            if running + len(admitted) >= self.limit:
                break
            new = [block for block in blocks if block not in self.cached]
            if new and new[0] in busy:
                continue
            busy.update(new)
            self.computing[request.id] = new
            del self.waiting[request.id]
            admitted.append(request)
        return admitted

    def started(self, request: int) -> None:
        """The prompt of ``request`` is computed, or the request is gone."""
        self.cached.update(self.computing.pop(request, ()))


def _blocks(prompt: list[int]) -> list[int]:
    """One number for each full block of ``prompt``, standing for the block and all before it."""
    chain, numbers = 0, []
    for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
        chain = hash((chain, *prompt[start : start + BLOCK]))
        numbers.append(chain)
    return numbers


def serve(setup: Setup, inbox: Frames, out: int) -> None:
    """Load, then add requests and step until the owner closes the stream."""
    import numpy
    import openvino
    import openvino_genai

    began = time.perf_counter()
    scheduler = openvino_genai.SchedulerConfig()
    for name, value in setup.scheduler.items():
        setattr(scheduler, name, value)
    pipeline = openvino_genai.ContinuousBatchingPipeline(setup.gguf, scheduler, "CPU", setup.properties)
    write_frame(out, Ready(time.perf_counter() - began))

    status = openvino_genai.GenerationStatus
    gate = Gate(scheduler.max_num_seqs)
    running: dict[int, Any] = {}
    while True:
        while not (running or gate.waiting) or select.select([inbox.fd], [], [], 0)[0]:
            frames = inbox.read()
            if frames is None:
                return
            for frame in frames:
                if isinstance(frame, Request):
                    gate.put(frame)
                elif frame.id in running:
                    running.pop(frame.id).cancel()
                    gate.started(frame.id)
                else:
                    gate.waiting.pop(frame.id, None)
        for request in gate.admit(len(running)):
            settings = openvino_genai.GenerationConfig(max_new_tokens=request.max_tokens)
            settings.stop_token_ids = set(request.end_ids)
            settings.set_eos_token_id(request.end_ids[0])  # left unset it is -1, which is then refused as a stop token
            if request.temperature > 0:
                settings.do_sample = True
                settings.temperature, settings.top_p, settings.rng_seed = request.temperature, request.top_p, request.seed
            try:
                prompt = openvino.Tensor(numpy.array([request.prompt], dtype=numpy.int64))
                running[request.id] = pipeline.add_request(request.id, prompt, settings)
            except RuntimeError as error:
                gate.started(request.id)
                write_frame(out, Result(request.id, [], str(error).strip().splitlines()[-1]))
        pipeline.step()
        for key, handle in list(running.items()):
            state = handle.get_status()
            if key in gate.computing and (state != status.RUNNING or handle.can_read()):
                gate.started(key)
            if state != status.RUNNING:
                del running[key]
                if state == status.IGNORED:
                    write_frame(out, Result(key, [], "the prompt does not fit into the key-value cache; raise cache_gb"))
                else:
                    said = handle.read_all()[0]
                    write_frame(out, Result(key, list(said.generated_ids), logprob=sum(said.generated_log_probs)))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner decides what becomes of the work
    out = os.dup(1)
    os.dup2(2, 1)  # OpenVINO prints; what it prints must not mix with the frames
    inbox = Frames(0, Setup | Request | Cancel)
    frames: list[Any] | None = []
    while frames == []:
        frames = inbox.read()
    if frames:
        serve(frames[0], inbox, out)


if __name__ == "__main__":
    main()
