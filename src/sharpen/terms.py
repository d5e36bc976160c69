"""Permission first: whose words a row is, on which terms they may train, and the gate that every training passes.

A row made by the trainee's own lineage (models that descend from the same weights) needs nobody's leave. Any other needs terms for whoever made it,
settled by a person before the first token. Terms ride on trajectories and rows, and a model inherits those of everything it was trained on. The gate
holds people to what they mean to keep; a file that lies about who made it is believed. The table of licences is no legal advice.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from sharpen.errors import SettingsError, Unsettled, nearest
from sharpen.formats.base import ENVIRONMENT
from sharpen.records import Maker, Model, Record, Row, Terms, Trajectory

TABLE = Path(__file__).parent / "licences.toml"
PAGE = "docs/terms.md"

# Solutions that come with the tasks (a game's walkthrough, a data set's answers): whoever chose the tasks chose them too. Where a model wrote a data set's
# answers, terms for the teacher ``expert`` say so in the place of these.
TASK_SOURCE = Terms(
    teacher="expert",
    licence="that of the tasks",
    training="allowed",
    settled_by="the task source",
    settled_on="",
    evidence="the task source's own expert, no model",
)
EXPERT = Maker(name=TASK_SOURCE.teacher, terms=(TASK_SOURCE,))


class TermsSettings(Record, frozen=True, kw_only=True):
    """What a person found out about the words of ``teacher``, as written into the settings; ``settle`` makes ``Terms`` of it.

    ``known_as`` are other names that the teacher has in trajectories: ``imported`` for files that name nobody. ``licence`` is an id of the table
    (``licences``), which then says whether outputs may train and on which conditions, or any other name, and then ``training`` and ``conditions`` are
    yours to write, [] for none. ``settled_by`` is who read the terms, ``settled_on`` when, ``evidence`` a URL or a file that is there, ``expires`` the
    last day on which the words may train.
    """

    teacher: str
    known_as: tuple[str, ...] = ()
    licence: str = ""
    training: Literal["allowed", "forbidden", "unknown"] | None = None
    conditions: tuple[str, ...] | None = None
    settled_by: str = ""
    settled_on: datetime.date | None = None
    evidence: str = ""
    expires: datetime.date | None = None

    def __post_init__(self) -> None:
        if not self.teacher.strip():
            raise SettingsError("teacher is empty; name the model, service or person whose words they are")


class Licence(Record, frozen=True, kw_only=True):
    """One line of the table: what a licence, or a service's terms, say of training other models on outputs (of models) or on the text (of data).

    ``also`` are other names. ``says`` is what ``training`` goes by, read on ``checked`` as far as ``read`` tells (its whole text, the clause in question,
    or not); ``source`` is where to read it again. Where it was not read, or leaves it open, ``training`` is ``unknown``, and so it is for every service.
    """

    id: str
    name: str
    covers: Literal["weights", "data", "service"]
    training: Literal["allowed", "forbidden", "unknown"]
    conditions: tuple[str, ...] = ()
    says: str
    source: str
    read: Literal["text", "clause", "no"]
    checked: datetime.date
    also: tuple[str, ...] = ()


@cache
def licences() -> tuple[Licence, ...]:
    """The table, in its own order. No legal advice."""
    return msgspec.convert(tomllib.loads(TABLE.read_text())["licence"], tuple[Licence, ...])


def find(name: str) -> Licence | None:
    """The line of the table for ``name``; case, spaces, dashes and the word "license" do not matter. None where there is none."""
    return _by_name().get(_plain(name))


def unknown(name: str) -> str:
    """What to say of a licence that the table lacks."""
    close = nearest(name, [one.id for one in licences()])
    return f"the table has no licence {name!r}{close if close.endswith('?') else '; `sharpen terms` lists what it has'}"


@cache
def _by_name() -> dict[str, Licence]:
    return {_plain(name): one for one in licences() for name in (one.id, one.name, *one.also)}


def _plain(name: str) -> str:
    return re.sub(r"licen[cs]e|[^a-z0-9.]", "", name.casefold())


# ---------------------------------------------------------------- settling


def settle(given: TermsSettings, today: datetime.date | None = None) -> Terms:
    """The terms that ``given`` settles. Unsettled, one line, where they do not let the teacher's words train, or leave out who says so and why."""
    problem = _open(given)
    if problem:
        raise Unsettled(f"terms of {given.teacher!r}: {problem} ({PAGE})", forbids=_forbids(given))
    known = find(given.licence)
    terms = Terms(
        teacher=given.teacher,
        licence=known.id if known is not None else given.licence.strip(),
        training=given.training or (known.training if known is not None else "unknown"),
        conditions=tuple(dict.fromkeys((*(known.conditions if known is not None else ()), *(given.conditions or ())))),
        settled_by=given.settled_by.strip(),
        settled_on=given.settled_on.isoformat() if given.settled_on is not None else "",
        evidence=given.evidence.strip(),
        expires=given.expires.isoformat() if given.expires is not None else "",
    )
    check(terms, today)
    if not re.match(r"https?://", terms.evidence) and not Path(terms.evidence).expanduser().is_file():
        raise Unsettled(f"terms of {given.teacher!r}: evidence {terms.evidence!r} is neither a URL nor a file that is there ({PAGE})")
    return terms


def _open(given: TermsSettings) -> str:
    """What of licence, training and conditions is left open, or forbids it; "" where they allow it."""
    if not given.licence.strip():
        return "licence is missing; name the licence or the terms that its words come under"
    known = find(given.licence)
    if known is not None and _forbids(given) and given.training != "forbidden":
        return (
            f"{known.id} forbids it: {known.says} ({known.source}); choose another teacher or, where you have leave of your own, name that as licence, "
            "with training: allowed and its evidence"
        )
    if known is None and given.training is None:
        return f"{unknown(given.licence)}; else read it, then write training (allowed or forbidden) and conditions"
    if known is not None and known.training == "unknown" and given.training is None:
        return f"{known.id} is not known to allow it: {known.says} Read {known.source}, then write training (allowed or forbidden) and conditions"
    if given.training == "allowed" and given.conditions is None and (known is None or known.training == "unknown"):
        return "training is allowed, but on which conditions? write conditions: a list, [] where there are none"
    return ""


def _forbids(given: TermsSettings) -> bool:
    known = find(given.licence)
    return given.training == "forbidden" or (known is not None and known.training == "forbidden")


def check(terms: Terms, today: datetime.date | None = None) -> None:
    """Unsettled, one line, unless ``terms`` let words train on ``today``, and say who settled that, when, and on what evidence."""
    if terms == TASK_SOURCE:
        return
    today = today or datetime.date.today()
    if terms.training != "allowed":
        why = "forbid" if terms.training == "forbidden" else "are not known to allow"
        raise Unsettled(
            f"terms of {terms.teacher!r}: {terms.licence or 'they'} {why} training on its words; choose another teacher ({PAGE})",
            forbids=terms.training == "forbidden",
        )
    needed = {
        "teacher (a name)": terms.teacher,
        "licence (or the name of the terms)": terms.licence,
        "settled_by (the person who read them)": terms.settled_by,
        "settled_on (a date, YYYY-MM-DD)": terms.settled_on,
        "evidence (a URL or a file)": terms.evidence,
    }
    if missing := [name for name, value in needed.items() if not value.strip()]:
        raise Unsettled(f"terms of {terms.teacher!r}: they lack {', '.join(missing)} ({PAGE})")
    settled_on = _date(terms, "settled_on", terms.settled_on)
    if settled_on > today:
        raise Unsettled(f"terms of {terms.teacher!r}: settled_on {settled_on} is in the future; today is {today} ({PAGE})")
    if terms.expires and _date(terms, "expires", terms.expires) < today:
        raise Unsettled(f"terms of {terms.teacher!r}: they expired on {terms.expires}; settle them anew, with a later expires ({PAGE})")


def _date(terms: Terms, field: str, text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise Unsettled(f"terms of {terms.teacher!r}: {field} {text!r} is no date; write YYYY-MM-DD ({PAGE})") from None


# ---------------------------------------------------------------- who made what


def whose(trajectory: Trajectory) -> Maker:
    """Whose words ``trajectory`` is; where that is not recorded, whoever its agent names."""
    return trajectory.maker or Maker(name=trajectory.agent)


def root_of(model: Model) -> str:
    """The fingerprint of the weights that ``model`` descends from: its own where it was not trained here."""
    return model.lineage.root or model.lineage.parent or model.fingerprint


def maker_of(model: Model) -> Maker:
    """``model`` as the one whose words something is. What it was trained on rides on what it says."""
    return Maker(name=model.name, root=root_of(model), terms=model.lineage.terms)


def owned(maker: Maker, trainee: Model) -> bool:
    """Whether ``maker`` is of the trainee's own lineage: descends from the same weights."""
    return bool(maker.root) and maker.root in (root_of(trainee), trainee.fingerprint, trainee.lineage.parent)


def settled(maker: Maker, given: Sequence[TermsSettings], today: datetime.date | None = None) -> Maker:
    """``maker`` with the terms that ``given`` has for it, or for those whose words it was trained on, in the place of what came with it.

    Unsettled where these do not let its words train. Where ``given`` says nothing of any of them, ``maker`` as it is: the gate decides.
    """
    mine = [one for one in given if maker.name in (one.teacher, *one.known_as)]
    inherited = {terms.teacher for terms in maker.terms}
    fresh = [settle(one, today) for one in given if one in mine or one.teacher in inherited]
    if not fresh:
        return maker
    replaced = {terms.teacher for terms in fresh} | ({maker.name} if mine else set())
    kept = [terms for terms in maker.terms if terms.teacher not in replaced]
    return replace(maker, name=mine[0].teacher if mine else maker.name, terms=merged(kept, fresh))


def brought(trajectory: Trajectory, given: Sequence[TermsSettings], where: str) -> Trajectory:
    """``trajectory``, read from the file ``where``, with the terms that ``given`` has for whoever made it; in a file that names nobody, for the one teacher.

    Unsettled where they are not for whoever made it: terms of one teacher cover no other's words.
    """
    if trajectory.maker is None and trajectory.agent == ENVIRONMENT and len(given) == 1:
        name = given[0].teacher
        trajectory = replace(trajectory, agent=name, key=replace(trajectory.key, model=name))
    maker = whose(trajectory)
    covered = settled(maker, given)
    if covered == maker and not maker.root and not maker.terms:
        who = "does not say who made them" if maker.name == ENVIRONMENT else f"holds words of {maker.name!r}"
        raise Unsettled(
            f"{where} {who}, and the terms are for {', '.join(repr(one.teacher) for one in given)}; add terms for whoever made them, "
            f"or known_as: [{maker.name}] where it is the same ({PAGE})"
        )
    return replace(trajectory, maker=covered)


def written(terms: Iterable[Terms]) -> list[dict[str, Any]]:
    """``terms`` as a file of them holds them: what ``TermsSettings`` reads."""
    kept = [{name: value for name, value in msgspec.to_builtins(one).items() if value != ""} for one in terms]
    return [{**one, "conditions": list(one["conditions"])} for one in kept]


def with_terms(rows: Iterable[Row], given: Sequence[TermsSettings], today: datetime.date | None = None) -> tuple[Row, ...]:
    """``rows`` with ``given`` settled for their makers."""
    known: dict[Maker, Maker] = {}
    made = []
    for row in rows:
        maker = _maker(row)
        if maker not in known:
            known[maker] = settled(maker, given, today)
        made.append(row if known[maker] == maker else replace(row, maker=known[maker]))
    return tuple(made)


def gate(rows: Iterable[Row], trainee: Model, today: datetime.date | None = None) -> tuple[Terms, ...]:
    """The terms that ride on ``rows``, which a model trained on them inherits.

    Unsettled, one line, where a row was made outside the trainee's lineage and nobody settled the terms of who made it, or where terms that ride on
    a row (its maker's, or inherited) do not let it train today.
    """
    counts = Counter(_maker(row) for row in rows)
    for maker, count in counts.items():
        vouch(maker, trainee, f"{count} rows", today)
    return merged(*(maker.terms for maker in counts))


def vouch(maker: Maker, trainee: Model, what: str, today: datetime.date | None = None) -> None:
    """Unsettled unless ``what``, words of ``maker``, may train ``trainee`` today."""
    if not owned(maker, trainee) and not any(terms.teacher == maker.name for terms in maker.terms):
        who = "WHO, known_as: [imported]" if maker.name == ENVIRONMENT else maker.name
        said = "words of nobody knows whom" if maker.name == ENVIRONMENT else f"the words of {maker.name!r}"
        raise Unsettled(
            f"{what} would train {trainee.name} and are {said}, outside its own lineage, and nobody settled that they may; write into the settings "
            f"terms: [{{teacher: {who}, licence: NAME, settled_by: YOU, settled_on: YYYY-MM-DD, evidence: URL}}] ({PAGE})"
        )
    for terms in maker.terms:
        check(terms, today)


def _maker(row: Row) -> Maker:
    """Who made a row; where that is not recorded, whoever its key names."""
    return row.maker or Maker(name=row.key.model, root=row.key.model)


def merged(*groups: Iterable[Terms]) -> tuple[Terms, ...]:
    """All of them, each once; of those that differ only in who settled them when, the last."""
    found = {(terms.teacher, terms.licence, terms.conditions): terms for group in groups for terms in group}
    return tuple(found.values())
