"""Everything that can go wrong, on one page.

    SharpenError                     the user sees one line, never a traceback
    ├── SettingsError                a setting is unknown, contradictory or out of range: names the place and the nearest right key
    │   └── CapError                 a cap on spending cannot be kept to: it is lower than one call, a price is unknown, or nobody counts tokens
    ├── TaskError                    a task set cannot be read, split or checked (no gold solution passes, splits overlap)
    ├── FormatError                  a file of trajectories cannot be read, or a trajectory does not fit the format it is written in
    ├── ModelError                   weights, tokenizer or template are missing or do not fit together
    ├── RunError                     a run folder is locked, changed, or half deleted
    ├── StorageError                 the disk is full or a file cannot be written; what was finished is safe
    ├── PolicyError                  the engine or endpoint broke: infrastructure, so an ``error``, never a ``fail``
    │   ├── ContextOverflow          the conversation outgrew the context: the policy's failure, so a ``fail``
    │   └── ContentFiltered          a server's filter stopped what the policy said: the policy's failure, so a ``fail``
    ├── EnvironmentFault             the environment raised or hung: an ``error``
    ├── SandboxError                 the machine has no sandbox for code nobody vouches for (how to get one), or a box broke: an ``error``
    ├── TrainingError                the training process died, or the loss is NaN; the run can be resumed
    ├── Stopped                      a cap is reached, or the user asked: what is finished is kept, and the same command goes on from there
    ├── TooManyErrors                more of a stage's tries, or of its verdicts, ended in an error than a setting allows
    └── Refused                      the advisor refuses a method, and says what would lift the refusal
        └── Unsettled                words of someone outside the trainee's lineage may not train: nobody settled the terms, or they forbid it, or ended

A bad rollout is data, not a crash: ``sampling.py`` turns PolicyError and EnvironmentFault into trajectories with ``stop="error"``
at one boundary; everything else ends the command in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal


class SharpenError(Exception):
    """Base of every error a user can meet. The message says what is wrong, where, and what to do."""


class SettingsError(SharpenError, ValueError):
    """A setting is unknown, contradictory or out of range. A ValueError too, so that msgspec adds the place where it happened."""


class CapError(SettingsError):
    """A cap on spending cannot be kept to. Where a judge's own calls meet it, it ends the command as well, and is no verdict."""


class TaskError(SharpenError):
    """A task set cannot be read, split or trusted."""


class FormatError(SharpenError):
    """A file of trajectories cannot be read, or a trajectory cannot be written in the format asked for."""


class ModelError(SharpenError):
    """Weights, tokenizer or template are missing or do not fit together."""


class RunError(SharpenError):
    """A run folder is in use by another process, was made with other settings, or is damaged."""


class StorageError(SharpenError):
    """Something could not be written. What was finished before is on disk."""


Failure = Literal[
    "throttled",  # the server asks for fewer requests
    "overloaded",  # it has no room, or broke while it worked
    "context_length",  # the conversation does not fit
    "content_filter",  # its filter refused the conversation, or cut the answer
    "malformed",  # what it answered is no chat completion, or another model's
    "dead",  # it cannot be reached, hangs, or closed the connection
    "refused",  # it will not do this for us: no such model, a wrong key, a spent quota, a request it cannot read
]


class PolicyError(SharpenError):
    """The engine or endpoint broke. Infrastructure: the try is an error, not a fail. ``failure`` is its class, where an endpoint told."""

    failure: Failure | None = None

    def __init__(self, message: str, failure: Failure | None = None) -> None:
        super().__init__(message)
        self.failure = failure or self.failure


class ContextOverflow(PolicyError):
    """The conversation no longer fits the model's context. The policy's own failure."""

    failure = "context_length"


class ContentFiltered(PolicyError):
    """A server's content filter cut the answer, or refused a conversation that holds answers of the policy.

    Counted as the policy's own failure: what was filtered depends on what it said, and leaving such tries out would flatter it. A filter that
    refuses the task itself, before the policy said a word, is a plain PolicyError.
    """

    failure = "content_filter"


class EnvironmentFault(SharpenError):
    """The environment raised or hung. Infrastructure: the try is an error, not a fail."""


class SandboxError(SharpenError):
    """Code nobody vouches for cannot be run: there is no sandbox on this machine, or it broke. Infrastructure: an error, not a fail."""


class TrainingError(SharpenError):
    """The training process died or its loss is not a number. Nothing earlier is lost; the same command resumes."""


class Stopped(SharpenError):
    """A cap is reached, or the user asked for the end (``asked``). What was in flight has finished and nothing more was begun."""

    def __init__(self, message: str, *, asked: bool = False) -> None:
        super().__init__(message)
        self.asked = asked


class TooManyErrors(SharpenError):
    """More tries or verdicts of a stage ended in an error than ``sampling.max_errors`` allows. The message counts them by class."""


class Refused(SharpenError):
    """A method would be useless here. The message says what would lift the refusal."""


class Unsettled(Refused):
    """Words of someone outside the trainee's lineage may not train. The message says whose, why, and which settings would lift that.

    ``forbids``: their terms say no, where else nobody has said yes.
    """

    def __init__(self, message: str, *, forbids: bool = False) -> None:
        super().__init__(message)
        self.forbids = forbids


def nearest(word: str, known: Iterable[str]) -> str:
    """A ``; did you mean 'x'?`` for ``word``, or the list of what is known where nothing is near."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(options)}"
