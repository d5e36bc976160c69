"""What goes over the wire to an OpenAI-compatible server, and what its answers mean. Pure: bytes in, values out."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

import msgspec

from sharpen.chat.tool_calls import told_apart
from sharpen.errors import ContentFiltered, ContextOverflow, PolicyError
from sharpen.policies.base import Conversation, Sampling, Turn, turn_seed
from sharpen.records import Message, ToolCall, TurnTokens

T = TypeVar("T")
PATH = "/chat/completions"
_OVERFLOW = re.compile(
    r"context[_ -]?(length|window|size)|maximum (context|model) length|prompt is too long|too many (input )?tokens"
    r"|(input|prompt|token count)\b.{0,40}(longer than|exceeds) the (maximum|model)|tokens.{0,40}must be <=",
    re.IGNORECASE | re.DOTALL,
)
_FILTER = re.compile(r"content[_ ](filter|policy[_ ]violation|management policy)|ResponsibleAIPolicyViolation|safety system", re.IGNORECASE)
_SPENT = re.compile(r"insufficient[_ ](quota|balance|credit)|credit_balance|\blimit:\s*0\b|(spend|usage)_limit_exceeded", re.IGNORECASE)
_SECONDS = re.compile(r"\d+(\.\d+)?")


class _Function(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Answer(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Token(msgspec.Struct):
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Choice(msgspec.Struct):
    message: _Answer
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(msgspec.Struct):
    """A chat completion, as far as it is read. ``model`` is the name that the server gives itself."""

    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: _Usage | None = None
    model: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None

    @property
    def prompted(self) -> int:
        """Prompt tokens, as far as the server counts them, or gives them."""
        return _count(self.usage.prompt_tokens if self.usage else None, self.prompt_token_ids)

    @property
    def sampled(self) -> int:
        """Sampled tokens, as far as the server counts them, or gives them."""
        return _count(self.usage.completion_tokens if self.usage else None, self.choices[0].token_ids)

    @property
    def unsized(self) -> bool:
        """Whether it leaves out how many tokens this took. No prompt is empty, and no answer that says something."""
        answer = self.choices[0].message
        said = answer.content or answer.reasoning_content or answer.reasoning or answer.refusal or answer.tool_calls
        counted = self.usage is not None and self.usage.completion_tokens == 0 and not said
        return not self.prompted or not (self.sampled or counted)


def _count(told: int | None, ids: tuple[int, ...] | None) -> int:
    return told if told is not None and told > 0 else len(ids or ())


@dataclass(frozen=True)
class Trouble:
    """Why there is no completion, and what helps: ``wait`` until the server has room, ask ``again``, or nothing does (``give up``).

    ``retry_after`` is what the server asks to wait, in seconds, 0 where it says nothing. ``lost`` where no answer came that could be used,
    ``gone`` where not even a connection. ``status`` is the answer's, 0 where there was none, and ``said`` its words.
    """

    error: PolicyError
    then: Literal["wait", "again", "give up"]
    retry_after: float = 0.0
    lost: bool = False
    gone: bool = False
    status: int = 0
    said: str = ""

    @property
    def locked_out(self) -> bool:
        """Whether the key is not let in."""
        return self.status in (401, 403)


class Wire(Protocol):
    """An API that gives turns, as the module that speaks it: this one OpenAI's, ``endpoint_messages.py`` Anthropic's. ``PATH`` is where it is asked."""

    PATH: str

    def headers(self, key: str) -> dict[str, str]:
        """What lets ``key`` in, "" for none."""

    def models(self, model: str) -> str:
        """The path that says under which names ``model`` is served."""

    def least(self, extra: Mapping[str, Any]) -> int:
        """The fewest tokens that may be asked for."""

    def request(
        self, model: str, conversation: Conversation, sampling: Sampling, limit_field: str, extra: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The body of a request; SettingsError where the API has no words for it."""

    def read(self, url: str, status: int, headers: Mapping[str, str], content: bytes, key: str = "") -> Completion | Trouble:
        """What an answer says."""


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def models(model: str) -> str:
    return "/models"


def least(extra: Mapping[str, Any]) -> int:
    return 1


def request(model: str, conversation: Conversation, sampling: Sampling, limit_field: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request. A null in ``extra`` takes the field of that name out."""
    body = {
        "model": model,
        "messages": [plain(message) for message in conversation.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        limit_field: sampling.max_tokens,
        "seed": turn_seed(sampling.seed, [msgspec.json.encode(conversation.messages)]) & 0x7FFFFFFF,  # some servers take 32 bits, signed
        **extra,
    }
    if conversation.tools:
        body["tools"] = conversation.tools
    return {name: value for name, value in body.items() if value is not None} if None in extra.values() else body


def opening(conversation: Conversation) -> bytes:
    """What all tries of one task, and all turns of one try, begin with: everything before the first turn that was sampled."""
    messages = conversation.messages
    left = len(conversation.turns)
    end = len(messages)
    for at in range(len(messages) - 1, -1, -1):
        if not left:
            break
        if messages[at].role == "assistant":
            left, end = left - 1, at
    return "\n".join(message.content for message in messages[:end]).encode(errors="surrogatepass")


def read(url: str, status: int, headers: Mapping[str, str], content: bytes, key: str = "") -> Completion | Trouble:
    """A server's answer: a completion, or what is wrong with it, in one line without the ``key``."""
    return decoded(_decode, "a chat completion", url, status, headers, content, key)


def decoded(
    decode: Callable[[bytes], T], what: str, url: str, status: int, headers: Mapping[str, str], content: bytes, key: str
) -> T | Trouble:
    """``content`` by ``decode``, or why it is not ``what`` it should be."""
    if status == 200:
        try:
            return decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            inner = _inner_status(content)
            if inner is None:
                said = f"{_one_line(str(error), key)}: {_one_line(content[:2000].decode(errors='replace'), key)[:100]}"
                return malformed(f"{url} answered with something else than {what}: {said}")
            status = inner
    return trouble(url, status, headers, content, key)


def trouble(url: str, status: int, headers: Mapping[str, str], content: bytes, key: str = "") -> Trouble:
    """What an answer with another status than 200 means, whatever was asked."""
    text = _words(content)
    said = _one_line(text, key) or "no message"
    line = f"{url} answered {status}: {said}"
    if status in (400, 413, 422, 500) and _OVERFLOW.search(text):
        return Trouble(ContextOverflow(line), "give up", status=status)
    if status in (400, 403, 422) and _FILTER.search(text):
        return Trouble(PolicyError(line, "content_filter"), "give up", status=status)
    wait = retry_after(headers)
    if status == 429 and not _SPENT.search(text):
        return Trouble(PolicyError(line, "throttled"), "wait", wait, status=status)
    if status in (503, 529):
        return Trouble(PolicyError(line, "overloaded"), "wait", wait, status=status)
    if status in (408, 409) or status >= 500:
        return Trouble(PolicyError(line, "overloaded"), "again", wait, status=status)
    if 300 <= status < 400:
        line = f"{url} redirects to {_one_line(headers.get('Location', 'nowhere'), key)}; set base_urls to where it leads"
    return Trouble(PolicyError(line, "refused"), "give up", status=status, said=said)


def malformed(line: str) -> Trouble:
    return Trouble(PolicyError(line, "malformed"), "again", lost=True)


def turn(completion: Completion, conversation: Conversation, sampling: Sampling) -> Turn:
    """The turn in a completion: tool calls and reasoning kept, ids of calls told apart. ContentFiltered where the server cut it.

    Of greedy turns no log-probability is told: nothing was drawn.
    Arguments that are not JSON stay as they are: that is what the model wrote, and its environment tells it so.
    """
    choice = completion.choices[0]
    answer = choice.message
    if choice.finish_reason == "content_filter":
        raise ContentFiltered("the server's content filter cut the answer")
    calls = tuple(ToolCall(id=call.id or "", name=call.function.name, arguments=_arguments(call)) for call in answer.tool_calls or ())
    message = Message(
        role="assistant",
        content=answer.content or answer.refusal or "",
        reasoning=answer.reasoning_content if answer.reasoning_content is not None else answer.reasoning,
        tool_calls=calls,
    )
    stop: Literal["stop", "length"] = "length" if choice.finish_reason == "length" else "stop"
    told = choice.logprobs.content if choice.logprobs is not None and sampling.temperature > 0 else None
    logprob = None if told is None else round(sum(token.logprob for token in told), 4)
    return Turn(
        message=told_apart(message, conversation.messages) if calls else message,
        tokens=TurnTokens(prompt=completion.prompt_token_ids, output=choice.token_ids, stop=stop, logprob=logprob),
        prompt_tokens=completion.prompted,
        sampled_tokens=completion.sampled,
        unsized=completion.unsized,
    )


def aborted(url: str, completion: Completion) -> Trouble | None:
    """Servers that drop a request while it runs say so in its finish reason only."""
    reason = completion.choices[0].finish_reason
    if reason in ("abort", "error"):
        return Trouble(PolicyError(f"{url} gave up the request (finish_reason {reason})", "overloaded"), "again")
    return None


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait by Retry-After (seconds or a date) or retry-after-ms; 0 where they say nothing that can be read."""
    if _SECONDS.fullmatch(milliseconds := headers.get("retry-after-ms", "")):
        return float(milliseconds) / 1000
    said = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(said):
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def without_key(text: str, key: str) -> str:
    return text.replace(key, "***") if key else text


_decode = msgspec.json.Decoder(Completion).decode


def _inner_status(content: bytes) -> int | None:
    """The status in an error that came with status 200, as gateways send for a server behind them."""
    try:
        status = msgspec.json.decode(content)["error"]["code"]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return None
    return status if isinstance(status, int) and 400 <= status < 600 else None


def _words(content: bytes) -> str:
    """What the server says is wrong, with its codes, and without what it repeats of the request."""
    try:
        said = msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return content.decode(errors="replace")
    if isinstance(said, dict) and isinstance(said.get("error"), dict | str):
        said = said["error"]
    if not isinstance(said, dict):
        return said if isinstance(said, str) else content.decode(errors="replace")
    if isinstance(detail := said.get("detail"), list):  # FastAPI's, which also holds the whole input
        return "; ".join(f"{_dotted(one.get('loc'))}: {one.get('msg')}" for one in detail if isinstance(one, dict))
    message = next((str(said[name]) for name in ("message", "detail", "error") if said.get(name)), "")
    codes = [code for name in ("code", "type") if isinstance(code := said.get(name), str) and code and code not in message]
    return f"{message} ({', '.join(codes)})" if message and codes else message or ", ".join(codes) or content.decode(errors="replace")


def _dotted(place: Any) -> str:
    return ".".join(str(part) for part in place if part != "body") if isinstance(place, list) else "body"


def _one_line(text: str, key: str) -> str:
    return " ".join(without_key(text, key).split())[:300]


def _arguments(call: _Call) -> str:
    given = call.function.arguments
    return given if isinstance(given, str) else msgspec.json.encode(given or {}).decode()


def plain(message: Message) -> dict[str, Any]:
    """A message as the API takes it. Earlier reasoning stays home: servers refuse it or drop it."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
        ]
    for key in ("tool_call_id", "name"):
        if (value := getattr(message, key)) is not None:
            plain[key] = value
    return plain
