"""Scores from a local folder: transformers' sequence classification, one micro-batch after another."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Annotated, Any, Literal

import msgspec

from sharpen.chat.template import ChatTemplate
from sharpen.errors import ContextOverflow, ModelError, PolicyError
from sharpen.models import read_config
from sharpen.policies.transformers import best_device
from sharpen.records import Message, Model, Record


class Classifier(Record, frozen=True, kw_only=True, tag_field="engine", tag="transformers"):
    """Settings of local sequence classification.

    ``precision`` auto is bf16 on CUDA and f32 elsewhere; ``device`` auto is the first GPU, else the CPU; ``max_batch`` rows run at once (in batches
    of another size, scores differ in their last bits; 1 gives the same bits each time). A try over ``max_length`` tokens (0: as many as the model can
    read) is an error; ``too_long: cut_start`` leaves its beginning out, and the verdict says so.
    """

    precision: Literal["auto", "f32", "bf16"] = "auto"
    device: str = "auto"
    max_batch: Annotated[int, msgspec.Meta(ge=1)] = 8
    max_length: Annotated[int, msgspec.Meta(ge=0)] = 0
    too_long: Literal["error", "cut_start"] = "error"


_Job = tuple[list[int], "Future[list[float]]"]


class ClassifierScorer:
    """A model folder that classifies. One thread takes what waits, up to ``max_batch``. Safe from many threads."""

    def __init__(self, model: Model, settings: Classifier) -> None:
        import torch
        import transformers

        self.settings, self.name = settings, model.name
        self.template = ChatTemplate.load(model.path)
        self.context = settings.max_length or int(read_config(model.path).get("max_position_embeddings") or 1 << 30)
        self.device = best_device() if settings.device == "auto" else settings.device
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and self.device.startswith("cuda"))
        try:
            weights, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                model.path, dtype=torch.bfloat16 if bf16 else torch.float32, output_loading_info=True
            )
            self._model: Any = weights.to(self.device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"transformers cannot load {model.name} as a classifier: {str(error).strip().splitlines()[0]}") from error
        if missing := sorted(info["missing_keys"]):  # transformers would draw them at random, and warn
            raise ModelError(f"{model.name} is no reward model: {missing[0]} is not in its weights; name one trained to score")
        self._pad = self._model.config.get_text_config().pad_token_id
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        threading.Thread(target=self._work, daemon=True, name="reward-model").start()

    def logits(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> tuple[list[float], int]:
        """One number for each label, and how many tokens were left out of how the template writes the conversation.

        ContextOverflow where it is too long, ModelError where the template cannot write it, PolicyError where the device fails.
        """
        ids = self.template.encode(self.template.render(messages, tools, answered=True))
        left_out = max(0, len(ids) - self.context)
        if left_out and self.settings.too_long == "error":
            raise ContextOverflow(f"{len(ids)} tokens exceed the {self.context} that {self.name} reads")
        future: Future[list[float]] = Future()
        self._jobs.put((ids[left_out:], future))
        if self._closed:  # perhaps the thread has left already
            self._turn_away()
        return future.result(), left_out

    def close(self) -> None:
        """Stop after the batch that runs; whoever still waits gets a PolicyError."""
        self._closed = True
        self._jobs.put(None)

    def _turn_away(self) -> None:
        """A PolicyError for all who wait, and for the thread a reason to leave."""
        while not self._jobs.empty():
            with contextlib.suppress(queue.Empty):
                if (job := self._jobs.get_nowait()) is not None:
                    job[1].set_exception(self._is_closed())
        self._jobs.put(None)

    def _is_closed(self) -> PolicyError:
        return PolicyError(f"the reward model {self.name} is closed")

    def _work(self) -> None:
        most = self.settings.max_batch if self._pad is not None else 1  # without a token for padding, rows cannot be told from it
        while True:
            jobs = [self._jobs.get()]
            time.sleep(0.005)  # whoever asks in the same breath joins the batch
            with contextlib.suppress(queue.Empty):
                while len(jobs) < most:
                    jobs.append(self._jobs.get_nowait())
            batch = [job for job in jobs if job is not None]
            answers: Sequence[list[float]] | Exception
            try:
                answers = self._scores([ids for ids, _ in batch]) if batch and not self._closed else []
            except Exception as error:  # out of memory, a device lost: whatever it is, it ends this batch and not the thread
                first = next(iter(str(error).strip().splitlines()), "")
                answers = PolicyError(f"transformers: {type(error).__name__}: {first}")
            if self._closed:
                answers = self._is_closed()
            for at, (_, future) in enumerate(batch):
                if isinstance(answers, Exception):
                    future.set_exception(answers)
                else:
                    future.set_result(answers[at])
            if self._closed:
                self._model = None
                self._turn_away()
                return

    def _scores(self, rows: Sequence[list[int]]) -> list[list[float]]:
        """Logits of each row. Padded on the right with the model's own padding token, which is how it finds a row's end."""
        import torch

        width = max(map(len, rows))
        ids = [row + [self._pad or 0] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        with torch.inference_mode():
            out = self._model(input_ids=torch.tensor(ids, device=self.device), attention_mask=torch.tensor(mask, device=self.device))
        found: list[list[float]] = out.logits.float().tolist()
        return found
