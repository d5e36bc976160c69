"""An environment of somebody's own: a callable, found by name, that makes it."""

from __future__ import annotations

from sharpen import plugins
from sharpen.environments.base import Environment
from sharpen.errors import EnvironmentFault


class EnvironmentPlugin(plugins.Plugin, frozen=True, kw_only=True, tag_field="environment", tag="plugin"):
    """``name`` (``file.py:name``, ``module:name``, an entry point of ``sharpen.environments``) is called with ``settings`` and gives an ``Environment``.

    Its own ``name`` is the identity of its samples: let it change with the code and the settings. A class with ``reset`` and tools for
    methods needs none of this: that is ``object``.
    """


def plugin_environment(settings: EnvironmentPlugin) -> Environment:
    """The environment that the plugin makes. SettingsError where it cannot be found or is none, EnvironmentFault where it raises."""
    made: Environment = plugins.make(settings, "environment", protocol=Environment, broken=EnvironmentFault)
    return made
