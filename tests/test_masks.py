"""Masks: what is trained on is what was sampled, the end of turn included, and nothing else; what cannot be proved is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sharpen.chat import masks
from sharpen.chat.base import Template
from sharpen.chat.scripted import END, END_ID, ScriptedTemplate
from sharpen.records import Message, Row, SampleKey, Stop, Thread, ToolCall, Trajectory, TurnTokens

KEY = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
USER, BOT = "user", "assistant"


def message(role: Any, content: str, **more: Any) -> Message:
    return Message(role=role, content=content, **more)


def trajectory(*messages: Message, turns: Sequence[TurnTokens] = (), stop: Stop = "done") -> Trajectory:
    return Trajectory(key=KEY, agent="a", messages=messages, turns=tuple(turns), stop=stop)


def turn(prompt: Sequence[int], output: Sequence[int], **more: Any) -> TurnTokens:
    return TurnTokens(prompt=tuple(prompt), output=tuple(output), **more)


def make(given: Trajectory, template: Template | None = None, max_length: int = 10_000) -> tuple[list[Row], str | None]:
    return masks.rows(given, template or ScriptedTemplate(), "sampled", max_length)


def learnt(row: Row, template: Template | None = None) -> list[str]:
    return [text for text, trained in masks.pieces(row, template or ScriptedTemplate()) if trained]


class Forgetful(ScriptedTemplate):
    """Drops the reasoning of every turn but the last, as most reasoning models' templates do."""

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, answered: bool = False) -> str:
        last = len(messages) - 1 if answered else len(messages)
        kept = [m if i >= last else Message(role=m.role, content=m.content) for i, m in enumerate(messages)]
        return super().render(kept, tools, answered=answered)


class Stripping(ScriptedTemplate):
    """Strips whitespace around every message, as Llama's template does."""

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, answered: bool = False) -> str:
        return super().render([Message(role=m.role, content=m.content.strip()) for m in messages], tools, answered=answered)


def test_a_turn_that_extends_the_last_continues_its_row() -> None:
    rows, problem = make(trajectory(turns=[turn([1, 2], [3, 256]), turn([1, 2, 3, 256, 7, 8], [9, 256])]))
    assert problem is None
    assert [row.input_ids for row in rows] == [(1, 2, 3, 256, 7, 8, 9, 256)]
    assert rows[0].labels == (-100, -100, 3, 256, -100, -100, 9, 256)
    assert rows[0].origin == "sampled"


def test_a_turn_with_another_history_starts_a_row() -> None:
    rows, _ = make(trajectory(turns=[turn([1, 2], [3, 256]), turn([1, 2, 7], [9, 256])]))
    assert [row.input_ids for row in rows] == [(1, 2, 3, 256), (1, 2, 7, 9, 256)]
    assert rows[1].labels == (-100, -100, -100, 9, 256)


def test_a_turn_cut_by_its_length_is_trained_as_sampled() -> None:
    rows, _ = make(trajectory(turns=[turn([1, 2], [3, 4], stop="length")]))
    assert rows[0].labels == (-100, -100, 3, 4)


def test_sampled_ids_are_not_tokenised_again() -> None:
    """No tokenizer would give these ids for this text; they are what the engine saw."""
    rows, _ = make(trajectory(message(USER, "x"), message(BOT, "abc"), turns=[turn([5], [999, 998, 256])]))
    assert rows[0].input_ids == (5, 999, 998, 256)


def test_demonstrations_train_every_assistant_turn_with_its_end() -> None:
    said = [message("system", "be brief"), message(USER, "go"), message(BOT, "north"), message(USER, "you see"), message(BOT, "take lamp")]
    (row,), problem = make(trajectory(*said))
    assert problem is None
    assert learnt(row) == [f"north{END}", f"take lamp{END}"]
    assert row.origin == "rendered"
    assert "".join(text for text, _ in masks.pieces(row, ScriptedTemplate())) == ScriptedTemplate().render(said, answered=True)[:-1]


def test_rendered_rows_are_what_the_engine_would_have_seen() -> None:
    """The same conversation as ids from an engine and as text gives the same row."""
    template = ScriptedTemplate()
    said = (message(USER, "go"), message(BOT, "north"), message(USER, "you see"), message(BOT, "take lamp"))
    turns: list[TurnTokens] = []
    for at in (1, 3):
        prompt = template.prompt(said[:at], turns)
        turns.append(turn(prompt, [*template.encode(said[at].content), END_ID]))
    sampled, rendered = make(trajectory(*said, turns=turns))[0], make(trajectory(*said))[0]
    assert [(row.input_ids, row.labels) for row in sampled] == [(row.input_ids, row.labels) for row in rendered]


def test_a_template_that_drops_reasoning_splits_rows() -> None:
    said = [message(USER, "go"), message(BOT, "north", reasoning="dark"), message(USER, "and"), message(BOT, "up", reasoning="light")]
    rows, problem = make(trajectory(*said), Forgetful())
    assert problem is None
    assert [learnt(row) for row in rows] == [[f"<think>\ndark\n</think>\nnorth{END}"], [f"<think>\nlight\n</think>\nup{END}"]]
    assert "dark" not in ScriptedTemplate().decode(rows[1].input_ids)


def test_reasoning_that_the_template_does_not_write_is_not_trained_around() -> None:
    said = [message(USER, "go"), message(BOT, "north", reasoning="dark")]
    assert make(trajectory(*said), Stripping()) == ([], masks.REWRITTEN)


def test_tool_calls_are_trained_and_observations_are_not() -> None:
    call = ToolCall(id="1", name="look", arguments='{"at": "the \\"lamp\\"", "n": [1, true]}')
    said = [message(USER, "go"), message(BOT, "", tool_calls=(call,)), message("tool", "a lamp", tool_call_id="1"), message(BOT, "done")]
    (row,), _ = make(trajectory(*said))
    first, last = learnt(row)
    assert '"name": "look"' in first and first.endswith(END)
    assert last == f"done{END}"


def test_a_template_that_strips_is_right_or_dropped() -> None:
    (row,), _ = make(trajectory(message(USER, " go "), message(BOT, "north")), Stripping())
    assert learnt(row) == [f"north{END}"]
    assert make(trajectory(message(USER, "go"), message(BOT, " north\n")), Stripping()) == ([], masks.REWRITTEN)


def test_an_empty_answer_trains_its_end() -> None:
    (row,), _ = make(trajectory(message(USER, "go"), message(BOT, "")))
    assert learnt(row) == [END]


def test_an_answer_that_spells_an_end_of_turn_is_trained_as_text() -> None:
    (row,), _ = make(trajectory(message(USER, "go"), message(BOT, f"a{END}b")))
    assert learnt(row) == [f"a{END}b{END}"] and row.labels.count(END_ID) == 1


def test_a_rendered_turn_cut_by_its_length_gets_no_end() -> None:
    said = [message(USER, "go"), message(BOT, "nor")]
    (row,), _ = make(trajectory(*said, stop="token_limit"))
    assert learnt(row) == ["nor"]
    (row,), _ = make(trajectory(*said, turns=[TurnTokens(stop="length")]))
    assert learnt(row) == ["nor"]


def test_over_long_rows_are_dropped_whole() -> None:
    given = trajectory(turns=[turn([1, 2], [3, 256])])
    assert len(make(given, max_length=4)[0]) == 1
    assert make(given, max_length=3) == ([], masks.OVER_LENGTH)


def test_nothing_to_train_is_said() -> None:
    assert make(trajectory(message(USER, "go"))) == ([], masks.NOTHING)
    assert make(trajectory(turns=[turn([1, 2], [])])) == ([], masks.NOTHING)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
EXCHANGES = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)


def check(template: Template, exchanges: list[tuple[str, str]]) -> None:
    """Either the trained text is the answers, each with its end, or the trajectory is dropped with a reason."""
    said = [message(role, text) for pair in exchanges for role, text in zip((USER, BOT), pair, strict=True)]
    rows, problem = make(trajectory(*said), template)
    if problem is not None:
        assert rows == [] and problem in (masks.REWRITTEN, masks.UNENDED)
        return
    # Ends part the answers: they are adjacent only where a template puts nothing between turns.
    outputs = [template.answer([t for t, label in zip(row.input_ids, row.labels, strict=True) if label != -100]) for row in rows]
    ends = [template.decode([row.labels[-1]]) for row in rows]
    assert "".join(f"{text}{end}" for text, end in zip(outputs, ends, strict=True)) == "".join(
        f"{answer}{ends[0]}" for _, answer in exchanges
    )


@given(EXCHANGES)
@settings(deadline=None, max_examples=50)
def test_any_text_is_trained_exactly_or_dropped(exchanges: list[tuple[str, str]]) -> None:
    check(ScriptedTemplate(), exchanges)
    check(Stripping(), exchanges)


@pytest.fixture(scope="module")
def smol() -> Template:
    pytest.importorskip("transformers")
    from sharpen.chat.load import load_template
    from sharpen.models import load_model

    return load_template(load_model("smollm2-135m-instruct"))


@pytest.mark.real
def test_smollm2_round_trip(smol: Template) -> None:
    said = [message(USER, "Où est 🦜?\n"), message(BOT, "  ici 🏴‍☠️ "), message(USER, "and now"), message(BOT, "nowhere\n\nat all")]
    (row,), problem = make(trajectory(*said), smol)
    assert problem is None
    assert learnt(row, smol) == ["  ici 🏴‍☠️ <|im_end|>", "nowhere\n\nat all<|im_end|>"]
    assert all(label in (-100, token) for token, label in zip(row.input_ids, row.labels, strict=True))


FORGETFUL = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and m.reasoning_content is defined and loop.last %}<think>
{{ m.reasoning_content }}
</think>
{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.mark.real
def test_a_real_template_that_drops_earlier_reasoning_splits_rows(tmp_path: Path) -> None:
    """As Qwen3's does: what was thought in one turn is gone from the next prompt, so the ids no longer continue."""
    from sharpen.chat.load import load_template
    from sharpen.models import load_model, with_template

    (tmp_path / "forgetful.jinja").write_text(FORGETFUL)
    template = load_template(with_template(load_model("smollm2-135m-instruct"), str(tmp_path / "forgetful.jinja"), tmp_path))
    turns: list[TurnTokens] = []
    said = (message(USER, "Which way?"),)
    for thought, answer in (("It is dark in the north.", "south"), ("South was a wall.", "east")):
        output = template.encode(f"<think>\n{thought}\n</think>\n{answer}<|im_end|>")
        turns.append(turn(template.prompt(said, turns), output))
        said = (*said, message(BOT, answer, reasoning=thought), message(USER, "And now?"))
    rows, problem = make(trajectory(*said[:-1], turns=turns), template)
    assert problem is None and len(rows) == 2 and {row.origin for row in rows} == {"sampled"}
    assert [tuple(label for label in row.labels if label != -100) for row in rows] == [turn.output for turn in turns]
    assert "dark" not in template.decode(rows[1].input_ids) and "south" in template.decode(rows[1].input_ids)


@pytest.mark.real
@given(EXCHANGES)
@settings(deadline=None, max_examples=30)
def test_any_text_is_trained_exactly_or_dropped_by_smollm2(smol: Template, exchanges: list[tuple[str, str]]) -> None:
    check(smol, exchanges)


def test_threads_give_rows_of_their_own_and_ids_in_all_of_them_or_none_are_used() -> None:
    aside = Thread(messages=(message(USER, "q"), message(BOT, "r")), turns=(turn([7], [8, 256]),))
    both = replace(trajectory(message(USER, "x"), message(BOT, "y"), turns=[turn([1, 2], [3, 256])]), threads=(aside,))
    rows, problem = make(both)
    assert problem is None and [row.input_ids for row in rows] == [(1, 2, 3, 256), (7, 8, 256)]
    rows, _ = make(replace(both, threads=(replace(aside, turns=(TurnTokens(),)),)))
    assert [row.origin for row in rows] == ["rendered", "rendered"]
    assert [learnt(row) for row in rows] == [[f"y{END}"], [f"r{END}"]]


def test_text_that_was_not_all_sampled_is_dropped() -> None:
    shot = (message(USER, "q"), message(BOT, "an example, not the model's"))
    assert make(trajectory(*shot, message(USER, "x"), message(BOT, "y"), turns=[TurnTokens()])) == ([], masks.UNSAMPLED)
