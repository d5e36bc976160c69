"""Where tasks are played: one tagged union, one function."""

from __future__ import annotations

from sharpen.environments.base import Environment
from sharpen.environments.mcp import Mcp, mcp_environment
from sharpen.environments.object import Object, object_environment
from sharpen.environments.plugin import EnvironmentPlugin, plugin_environment
from sharpen.environments.single_turn import SingleTurn, SingleTurnSettings
from sharpen.environments.tools import Functions, function_environment

EnvironmentSettings = SingleTurnSettings | Functions | Object | Mcp | EnvironmentPlugin


def load_environment(settings: EnvironmentSettings) -> Environment:
    """The environment that ``settings`` describe. SettingsError where its code cannot be found or does not fit, EnvironmentFault where a plugin raises."""
    match settings:
        case SingleTurnSettings():
            return SingleTurn()
        case Functions():
            return function_environment(settings)
        case Object():
            return object_environment(settings)
        case Mcp():
            return mcp_environment(settings)
        case EnvironmentPlugin():
            return plugin_environment(settings)
