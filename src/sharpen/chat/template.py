"""A model's chat template and tokenizer: messages to token ids and back. With ``masks.py`` the only code that knows tokens."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from sharpen.chat.names import MARK, Names, unmarked
from sharpen.chat.tool_calls import Spec, read, spec_for
from sharpen.errors import ModelError
from sharpen.records import Message, TurnTokens


class ChatTemplate:
    """Renders with the model's own template (through transformers) and continues from sampled ids without re-tokenising them."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"the tokenizer of {name} has no chat template; use an instruct model, or add chat_template.jinja to its folder"
            )
        self.tokenizer = tokenizer
        self.name = name
        self._lock = threading.Lock()  # fast tokenizers mutate themselves while encoding

    @classmethod
    def load(cls, path: str | Path) -> ChatTemplate:
        """The template in a model folder. ModelError where the folder has no tokenizer that transformers can read."""
        import transformers

        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
        except Exception as error:  # transformers raises many kinds here, none of them its own
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"no usable tokenizer in {path} ({first}); copy tokenizer.json and tokenizer_config.json there") from error
        return cls(tokenizer, str(path))

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an assistant turn: the tokenizer's end of sequence, and what the template itself puts after an answer."""
        ends = {self.tokenizer.eos_token_id} if self.tokenizer.eos_token_id is not None else set()
        question = Message(role="user", content="a")
        opened = self.render((question,))
        closed = self.render((question, Message(role="assistant", content="b")), answered=True)
        if closed.startswith(opened + "b"):
            tail = self.encode(closed[len(opened) + 1 :])
            if tail and tail[0] in self.tokenizer.all_special_ids:
                ends.add(tail[0])
        return frozenset(ends)

    @cached_property
    def calls(self) -> Spec | None:
        """How the model writes tool calls: the tokenizer's own ``response_template``, or what its chat template tells. None where neither does."""
        own: Spec | None = getattr(self.tokenizer, "response_template", None)
        return own or spec_for(str(self.tokenizer.chat_template))

    @cached_property
    def names(self) -> Names:
        """The control tokens: special ones, and added ones that the chat template names (DeepSeek's marks of roles are not special)."""
        return Names(self._controls)

    @cached_property
    def _own_names(self) -> Names:
        """Those that no assistant text may become: all but tags like ``<think>`` and ``</think>``, which models write themselves."""
        plain = {token.content for token in self.tokenizer.added_tokens_decoder.values() if not token.special}

        def is_tag(name: str) -> bool:
            return name in plain and {f"<{name.strip('</>')}>", f"</{name.strip('</>')}>"} <= self._controls.keys()

        return Names(name for name in self._controls if not is_tag(name))

    @cached_property
    def _controls(self) -> dict[str, int]:
        template = str(self.tokenizer.chat_template)
        return {
            token.content: at
            for at, token in self.tokenizer.added_tokens_decoder.items()
            # Gemma's line breaks are added tokens, but no control tokens.
            if (token.special or token.content in template) and not token.content.isspace()
        }

    @cached_property
    def _spelling(self) -> Any:
        """The tokenizer with every control token renamed to its name behind the mark, so that the bare name is text. None for a slow one."""
        import tokenizers

        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        settings = json.loads(backend.to_str())
        settings |= {"truncation": None, "padding": None}
        for token in settings["added_tokens"]:
            if token["content"] in self._controls:
                token["content"] = MARK + token["content"]
        return tokenizers.Tokenizer.from_str(json.dumps(settings))

    @cached_property
    def _renders_tools(self) -> bool:
        probe = {
            "type": "function",
            "function": {"name": "probe_of_tools", "description": "", "parameters": {"type": "object", "properties": {}}},
        }
        asked = [{"role": "user", "content": "a"}]
        return "probe_of_tools" in str(self.tokenizer.apply_chat_template(asked, tools=[probe], tokenize=False))

    @cached_property
    def _asking(self) -> str:
        return self.render((Message(role="user", content="a"),))

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, answered: bool = False) -> str:
        """The text the model reads, names of control tokens in messages and tools marked (see ``names.py``; ``unmarked`` gives it bare).

        Unless ``answered``, it ends where an assistant turn begins. ModelError where ``tools`` would be lost.
        """
        if tools and not (self.calls and self._renders_tools):
            raise ModelError(
                f"the chat template of {self.name} does not show tools to the model; set template: hermes, or name a .jinja file that does"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                [_plain(message, self._own_names if message.role == "assistant" else self.names) for message in messages],
                tools=self.names.held(tools) or None,
                tokenize=False,
                add_generation_prompt=not answered,
            )
        except Exception as error:  # jinja's own errors, and whatever a template raises on roles it does not know
            raise ModelError(f"the chat template of {self.name} cannot render this conversation: {error}") from error
        return str(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``. Names of control tokens in it become those tokens, marked ones ordinary text.

        ModelError where the tokenizer would make a control token of ordinary text all the same.
        """
        bare, written = unmarked(text), self.names.found(text)
        with self._lock:
            ids = list(self.tokenizer.encode(bare, add_special_tokens=False))
            if self.names.found(bare) == written and not self._forged(ids, written):
                return ids
            # Not token by token: what stands beside a name must be encoded as it is beside any other text.
            if self._spelling is not None:
                renamed = "".join(self.names.mark(part) for part in text.split(MARK))
                tokens = self._spelling.encode(renamed, add_special_tokens=False).tokens
                ids = self.tokenizer.convert_tokens_to_ids([token.removeprefix(MARK) for token in tokens])
        if forged := self._forged(ids, written):
            raise ModelError(
                f"the tokenizer of {self.name} makes control tokens of text in this conversation ({', '.join(forged)}), "
                "which could pass for the end of a turn; take it out, or use a model with a fast tokenizer (tokenizer.json)"
            )
        return ids

    def _forged(self, ids: Sequence[int], written: Sequence[str]) -> list[str]:
        """Names of the control tokens in ``ids`` that are not ``written``. The unknown token is none: text may well be unknown."""
        names = {at: name for name, at in self._controls.items() if at != self.tokenizer.unk_token_id}
        return list(Counter(names[token] for token in ids if token in names) - Counter(written))

    def decode(self, ids: Sequence[int]) -> str:
        """The exact text of ``ids``, special tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def answer(self, output: Sequence[int]) -> str:
        """The text of a sampled turn, without the token that ended it."""
        ids = list(output)
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        return self.decode(ids)

    def message(self, output: Sequence[int], tools: Sequence[dict[str, Any]] = ()) -> Message:
        """A sampled turn as a message: where there are ``tools``, calls and reasoning are read out of its text."""
        if not tools or self.calls is None:
            return Message(role="assistant", content=self.answer(output))
        return read(self.decode(output), self.calls, tools, self._asking, plain=self.answer(output))

    def prompt(self, messages: Sequence[Message], turns: Sequence[TurnTokens] = (), tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Ids that ask for the next assistant turn.

        Where the last assistant turn carries its ids and the template leaves history alone, those ids are continued unchanged, even where the
        template would write them otherwise (the spaces in a call's JSON), and only what is new is encoded. Else (text only, or a template that
        drops earlier reasoning) everything is encoded afresh.
        """
        text = self.render(messages, tools)
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=None)
        if last is not None and turns and (ids := turns[-1].prompt) is not None and (output := turns[-1].output) is not None:
            closed = self.render(messages[: last + 1], tools, answered=True)
            if text.startswith(closed):
                over = self._end_of_turn(closed, bool(output) and output[-1] in self.end_ids)
                return [*ids, *output, *self.encode(text[over:])]
        return self.encode(text)

    def _end_of_turn(self, closed: str, ended: bool) -> int:
        """Where the assistant turn that ``closed`` ends with is over: behind its end token, or before it where none was sampled."""
        at, mark = max(((closed.rfind(mark), mark) for mark in (self.decode([token]) for token in self.end_ids)), default=(-1, ""))
        return len(closed) if at < 0 else at + len(mark) if ended else at


def _plain(message: Message, names: Names) -> dict[str, Any]:
    """A message as chat templates expect it: tool arguments as a mapping, absent fields absent, ``names`` in its text held apart."""
    plain: dict[str, Any] = msgspec.to_builtins(message)
    plain.pop("problem", None)
    if message.reasoning is not None:
        plain["reasoning_content"] = plain.pop("reasoning")
    if message.tool_calls:
        plain["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in message.tool_calls
        ]
    return {key: value if key == "role" else names.held(value) for key, value in plain.items()}
