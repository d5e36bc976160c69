"""transformers' own ``generate``: runs every architecture on every device, one micro-batch after another. Token ids in, token ids out."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from sharpen.chat.template import ChatTemplate
from sharpen.errors import ModelError, PolicyError
from sharpen.models import read_config
from sharpen.policies.base import Conversation, Sampling, Turn, turn_seed
from sharpen.policies.futures import settle
from sharpen.policies.tokens import prompt_of, turn_of
from sharpen.records import Model, Record


class Transformers(Record, frozen=True, kw_only=True, tag_field="engine", tag="transformers"):
    """Settings of the transformers engine.

    ``precision`` auto is bf16 on CUDA and f32 elsewhere; ``device`` auto is the first GPU, else the CPU; ``max_batch`` rows run at once.
    """

    precision: Literal["auto", "f32", "bf16"] = "auto"
    device: str = "auto"
    max_batch: Annotated[int, msgspec.Meta(ge=1)] = 64


Answer = tuple[list[int], float | None]
"""What was sampled, the end token included where it was, and its log-probability (None where it is greedy)."""


@dataclass
class _Job:
    prompt: list[int]
    sampling: Sampling
    future: asyncio.Future[Answer]
    cancelled: threading.Event = field(default_factory=threading.Event)


class TransformersPolicy:
    """A model folder on transformers. One thread takes what waits, up to ``max_batch``, pads it on the left and runs it to its end.

    Each row has its own random generator, seeded from ``sampling.seed`` and its prompt, so the same try gives the same tokens whatever runs
    beside it, as far as float sums allow: other padding may round a logit differently in its last bit.
    """

    gives_token_ids = True

    def __init__(self, model: Model, settings: Transformers | None = None) -> None:
        import torch
        import transformers

        settings = settings or Transformers()
        self.name = model.name
        self.template = ChatTemplate.load(model.path)
        self.context = int(read_config(model.path).get("max_position_embeddings") or 1 << 30)
        self.device = best_device() if settings.device == "auto" else settings.device
        self.precision = settings.precision if settings.precision != "auto" else "bf16" if self.device.startswith("cuda") else "f32"
        try:
            dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
            weights: Any = transformers.AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype)
            self._model = weights.to(self.device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"transformers cannot load {model.name}: {str(error).strip().splitlines()[0]}") from error
        # The folder's own would add its temperature, top_k and penalties to what sampling settings say.
        self._model.generation_config = transformers.GenerationConfig()  # type: ignore[no-untyped-call]
        self._max_batch = settings.max_batch
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="transformers-engine")
        self._thread.start()

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        """The next turn. ContextOverflow where prompt and ``max_tokens`` exceed the context, PolicyError where the device fails."""
        prompt = prompt_of(self.template, conversation, sampling, self.context)
        if self._closed:
            raise PolicyError(f"the policy {self.name} is closed")
        job = _Job(prompt, sampling, asyncio.get_running_loop().create_future())
        self._jobs.put(job)
        try:
            output, logprob = await job.future
        except asyncio.CancelledError:
            job.cancelled.set()
            raise
        return turn_of(self.template, conversation, prompt, output, logprob)

    async def close(self) -> None:
        """Stop after the token being sampled; whoever still waits gets a PolicyError."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._model = None

    def _work(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            time.sleep(0.01)  # whoever asks in the same breath joins the batch; alone in one, the first would make them all wait
            while len(jobs) < self._max_batch and not self._jobs.empty():
                jobs.append(self._jobs.get())
            batch = [job for job in jobs if job is not None and not job.cancelled.is_set()]
            answers: Sequence[Answer | Exception]
            try:
                answers = self._generate(batch) if batch and not self._closed else []
            except Exception as error:  # out of memory, a device lost: whatever it is, it ends this batch and not the thread
                first = next(iter(str(error).strip().splitlines()), "")
                answers = [PolicyError(f"transformers: {type(error).__name__}: {first}")] * len(batch)
            if self._closed:
                while not self._jobs.empty():
                    batch += [job for job in [self._jobs.get()] if job is not None]
                answers = [PolicyError(f"the policy {self.name} is closed")] * len(batch)
            for job, answer in zip(batch, answers, strict=True):
                settle(job.future, answer)
            if self._closed:
                return

    def _generate(self, jobs: list[_Job]) -> list[Answer]:
        """An answer to each job."""
        import torch

        width = max(len(job.prompt) for job in jobs)
        ends = sorted(self.template.end_ids)
        ids = torch.tensor([[ends[0]] * (width - len(job.prompt)) + job.prompt for job in jobs], device=self.device)
        mask = torch.tensor([[0] * (width - len(job.prompt)) + [1] * len(job.prompt) for job in jobs], device=self.device)
        limits = torch.tensor([width + job.sampling.max_tokens for job in jobs], device=self.device)
        generators = [torch.Generator(self.device).manual_seed(turn_seed(job.sampling.seed, job.prompt)) for job in jobs]

        spoken: list[list[torch.Tensor]] = [[] for _ in jobs]  # the probability of every token, and of what is padding later

        def draw(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """Draw each row's token with its own generator, and leave greedy search no other choice."""
            for row, job in enumerate(jobs):
                if job.sampling.temperature > 0:
                    probabilities = torch.softmax(scores[row].float() / job.sampling.temperature, dim=-1)
                    if job.sampling.top_p < 1:
                        ordered, order = probabilities.sort(descending=True)
                        ordered[ordered.cumsum(0) - ordered >= job.sampling.top_p] = 0
                        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered)
                    token = torch.multinomial(probabilities, 1, generator=generators[row])
                    spoken[row].append(probabilities[token] / probabilities.sum())
                    scores[row] = -torch.inf
                    scores[row, token] = 0
            return scores

        def stop(sofar: torch.Tensor, _: torch.Tensor, **__: Any) -> torch.Tensor:
            gone = torch.tensor([self._closed or job.cancelled.is_set() for job in jobs], device=sofar.device)
            return gone | (sofar.shape[1] >= limits)

        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(job.sampling.max_tokens for job in jobs),
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=ends[0],
                logits_processor=[draw],
                stopping_criteria=[stop],
            )
        outputs = [self._cut(row[width:].tolist(), job.sampling.max_tokens) for row, job in zip(out, jobs, strict=True)]
        return [
            (output, float(torch.cat(each[: len(output)]).log().sum()) if each else None)
            for output, each in zip(outputs, spoken, strict=True)
        ]

    def _cut(self, output: list[int], limit: int) -> list[int]:
        """Without the padding after the end token, or after the limit."""
        end = next((i + 1 for i, token in enumerate(output) if token in self.template.end_ids), len(output))
        return output[: min(end, limit)]


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``, the first that is there."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
