"""An engine of somebody's own: a callable, found by name, that opens a model."""

from __future__ import annotations

from sharpen import plugins
from sharpen.errors import PolicyError
from sharpen.policies.base import Policy
from sharpen.records import Model


class PolicyPlugin(plugins.Plugin, frozen=True, kw_only=True, tag_field="engine", tag="plugin"):
    """``name`` (``file.py:name``, ``module:name``, an entry point of ``sharpen.policies``) is called with the model and ``settings`` and gives a ``Policy``.

    Which kinds of model it can run is its own business.
    """


def plugin_policy(model: Model, settings: PolicyPlugin) -> Policy:
    """The policy that the plugin opens. SettingsError where it cannot be found or is none, PolicyError where it raises."""
    made: Policy = plugins.make(settings, "policy", model, protocol=Policy, broken=PolicyError)
    return made
