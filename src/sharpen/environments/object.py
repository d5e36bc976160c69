"""Any object of TRL's ``environment_factory`` duck type, as it is: ``reset(**row)``, public methods as tools, perhaps ``get_reward()``."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from sharpen.environments.tools import Limits, Toolbox, ToolEnvironment, function_tools, in_thread
from sharpen.errors import EnvironmentFault, SettingsError
from sharpen.plugins import load
from sharpen.records import Task


class Object(Limits, frozen=True, kw_only=True, tag_field="environment", tag="object"):
    """``factory`` (``file.py:Class`` or ``module:Class``) makes one object an episode; a reward of ``success`` or more is a success."""

    factory: str
    success: float = 1.0


def object_environment(settings: Object) -> ToolEnvironment:
    """The environment of such objects. ``reset`` is given the task's parameters, prompt and reference, as far as it takes them.

    What ``reset`` returns as text is appended to the task's last user message, as TRL does. ``get_reward`` is asked once, after the answer.
    SettingsError where the class has no ``reset`` or no public method.
    """
    factory = load(settings.factory, "environment")
    return ToolEnvironment(f"object-{getattr(factory, '__name__', settings.factory)}", _opener(factory, settings), settings)


def _opener(factory: Callable[[], Any], settings: Object) -> Callable[[Task], Any]:
    @asynccontextmanager
    async def open_(task: Task) -> AsyncIterator[Toolbox]:
        thing = await in_thread(factory)
        # On the class: getmembers of an instance would run its properties.
        methods = {
            name: getattr(thing, name) for name, _ in inspect.getmembers(type(thing), inspect.isfunction) if not name.startswith("_")
        }
        reset, reward, close = (methods.pop(name, None) for name in ("reset", "get_reward", "close"))
        if reset is None or not methods:
            raise SettingsError(f"{settings.factory} needs a method reset and at least one public method to call")
        box = function_tools(list(methods.values()))
        said = await _maybe_async(reset, **row(reset, task))

        async def outcome() -> dict[str, Any]:
            if reward is None:
                return {}
            value = await _maybe_async(reward)
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
                raise EnvironmentFault(f"get_reward of {settings.factory} gave {value!r}, not a number")
            return {"score": float(value), "success": value >= settings.success}

        try:
            yield Toolbox(box.schemas, box.callers, said or "", outcome)  # type: ignore[arg-type]  # awaited by the episode
        finally:
            if close is not None:
                await _maybe_async(close)

    return open_


def row(reset: Callable[..., Any], task: Task) -> dict[str, Any]:
    """What ``reset`` is given of a task."""
    fields = {"prompt": msgspec.to_builtins(task.prompt), "reference": task.reference, **task.params}
    fields.pop("gold", None)
    parameters = inspect.signature(reset).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return fields
    return {name: value for name, value in fields.items() if name in parameters}


async def _maybe_async(function: Callable[..., Any], **arguments: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    return await in_thread(lambda: function(**arguments))
