"""What a verifier is: it looks at a task and a finished trajectory, and says pass, fail or error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeGuard, runtime_checkable

import msgspec

from sharpen.errors import SettingsError
from sharpen.records import Record, Spent, Task, Trajectory, Verdict
from sharpen.store.files import digest

if TYPE_CHECKING:
    from sharpen.policies.meter import Account, Meter
    from sharpen.policies.prices import Price

COSTS = ("free", "cpu", "model", "money")  # from cheap to dear
Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class Verifier(Protocol):
    """``name`` is written on every verdict, and a stored verdict is used again as long as it is the same: let it change with whatever changes
    verdicts. ``exact`` says that the verifier *is* the definition of success (an environment's own state, a set's own scorer), so that it
    needs no labels, only gold and no-op checks.

    Five things a verifier may have beside: ``timeout_s``, the seconds that one verdict may take where that is longer than usual (an engine has to start);
    ``at_once``, how many verdicts it wants to be asked for at once where that is more than usual (it asks in batches), 0 where not; ``close()``,
    which gives engines back; the next verdict opens them again. And ``cheats(task)``: answers that fit this verifier, are wrong whatever
    the task, and that it must fail: a mapping from the cheat's name to the answer, a text or assistant turns. The audit and the gate try them.
    ``members``: the verifiers that it is combined of. One that asks a policy or a server is ``Asking``, and may raise Stopped and CapError.
    """

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        """Never raises for a bad trajectory: that is a fail. Raising means that the verifier is broken: an error."""
        ...


def stands(known: Verdict | None, verifier: Verifier) -> TypeGuard[Verdict]:
    """Whether a stored verdict is given again: ``verifier`` made it, and it is no error, which asking again may mend."""
    return known is not None and known.verifier == verifier.name and known.outcome != "error"


def close(verifier: Verifier | None) -> None:
    """Give back what the verifier holds, where it holds anything."""
    if (give_back := getattr(verifier, "close", None)) is not None:
        give_back()


@runtime_checkable
class Asking(Verifier, Protocol):
    """A verifier that asks a policy or a server of its own, which may cost money; not where ``asks`` is false. ``remote``: one that is not run here."""

    @property
    def asks(self) -> bool: ...

    @property
    def remote(self) -> bool: ...

    def charge(self, account: Account) -> None:
        """From here on count what is asked in ``account``, and keep to its meter's caps. CapError where they cannot be kept to."""
        ...

    def price(self, prices: Mapping[str, Price]) -> tuple[Price | None, str]:
        """What a token costs, None where nobody knows, and where that comes from, as ``prices.price_of``."""
        ...

    def takes(self, tokens: float) -> tuple[Spent, Spent]:
        """Calls and tokens, without their price, of one verdict on task and work of so many ``tokens``: as expected, and at most."""
        ...


def asking(verifier: Verifier | None) -> tuple[Asking, ...]:
    """``verifier``, or those that it is combined of, as far as they ask policies or servers."""
    if members := getattr(verifier, "members", ()):
        return tuple(one for member in members for one in asking(member))
    return (verifier,) if isinstance(verifier, Asking) and verifier.asks else ()


def charge(verifier: Verifier | None, meter: Meter, stage: str) -> Account | None:
    """Where ``meter`` counts what ``verifier`` asks for ``stage`` from here on, None where it asks nothing. CapError as ``Asking.charge``."""
    if not (those := asking(verifier)):
        return None
    from sharpen.policies.meter import JUDGE  # here, since most verifiers need no policies

    account = meter.account(f"{stage}/{JUDGE}")
    for one in those:
        one.charge(account)
    return account


class Properties(Record, frozen=True, kw_only=True):
    """What anybody should know of a verifier before trusting it: a line of the table in ``docs/verifiers.md``.

    ``needs`` of the task. ``exact``: always, never, or as the settings claim. ``deterministic``: the same input gives the same verdict (a time
    limit aside). ``cost`` of a verdict. ``own_limit``: it always comes back, by its own time limit where there is one, so that nobody need watch it.
    ``gameable``: what passes and should not. ``fails`` and ``errors``: what is which, beside what holds for all (see ``judge``).

    Three that the table has no column for, since they are a made verifier's own. ``declared``: why whoever sets out to pass does, by how the verifier is
    built and whatever the task; "" where there is no such way. ``in_part``: the same of members of a combination that needs more of them than these.
    ``sandboxed``: whether what is judged runs in a sandbox; None where nothing of it is run.
    """

    needs: str
    exact: Literal["always", "as set", "never"] = "as set"
    deterministic: bool = True
    cost: Literal["free", "cpu", "model", "money"]
    own_limit: bool = True
    gameable: str
    fails: str
    errors: str
    declared: str = ""
    in_part: str = ""
    sandboxed: bool | None = None


@runtime_checkable
class Described(Verifier, Protocol):
    """A verifier that comes with sharpen: it says what it is and what it needs. A plugin's has no duty to."""

    @property
    def properties(self) -> Properties: ...

    def problem(self, task: Task) -> str:
        """Why ``task`` cannot be judged (its reference is missing, of the wrong type, empty), with what to do; "" where it can."""
        ...


def risks(verifier: Verifier) -> tuple[str, ...]:
    """What stands on everything that is made with ``verifier``: that it is declared gameable, and that it runs what it judges outside a sandbox."""
    if not isinstance(verifier, Described):
        return ()
    own, name = verifier.properties, f"the verifier {verifier.name}"
    said = [f"{name} is gameable: {own.declared}"] if own.declared else []
    said += [f"{name} runs what it judges outside a sandbox (none-i-trust-this-code)"] if own.sandboxed is False else []
    return tuple(said)


class Common(Record, frozen=True, kw_only=True):
    """What all settings of verifiers share. ``exact`` claims that this verifier *is* the definition of success in these tasks."""

    exact: bool = False


def name_of(settings: Record, *also: Any) -> str:
    """The verifier's tag, and 8 hex digits of whatever is set otherwise than by default, so that no verdict outlives a change.

    ``also`` is what changes verdicts beside the settings, such as the content of a file that they name. ``exact`` changes none.
    """
    kind = type(settings)
    fresh = {field.name: field.default for field in msgspec.structs.fields(kind)}
    changed = {key: value for key, value in msgspec.structs.asdict(settings).items() if value != fresh[key] and key != "exact"}
    tag = str(kind.__struct_config__.tag)
    return f"{tag}-{digest([changed, *also])[:8]}" if changed or also else tag


def says(name: str, trajectory: Trajectory, passed: bool, reason: str = "") -> Verdict:
    """A pass, or a fail with its reason."""
    return Verdict(key=trajectory.key, outcome="pass" if passed else "fail", reason="" if passed else reason, verifier=name)


def shown(text: object) -> str:
    """The beginning of something in one line of plain characters, for a reason: any JSON can hold it."""
    short = ascii(text if not isinstance(text, str) else text[:80])
    return short if len(short) <= 100 else f"{short[:100]}..."


def texts(task: Task) -> tuple[str, ...]:
    """The reference as the texts that are right: one string or number, or a list of them. SettingsError, one line, where it is neither."""
    given = task.reference
    if given is None:
        raise SettingsError("has no reference, which the answer is compared with; fill it in or drop the row")
    found = tuple(
        str(item)
        for item in (given if isinstance(given, list | tuple) else [given])
        if isinstance(item, str | int | float) and not isinstance(item, bool) and item not in (math.inf, -math.inf) and item == item
    )
    if not found or (isinstance(given, list | tuple) and len(found) < len(given)):
        raise SettingsError(f"has the reference {shown(given)}, but it must be a text or finite number, or a list of them; write it so")
    if not all(text.strip() for text in found):
        raise SettingsError("has an empty reference, which an empty answer would equal; fill it in or drop the row")
    return found
