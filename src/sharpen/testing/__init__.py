"""Property tests for parts of your own, to be called from your own pytest: ``check_verifier(verify, tasks)`` and so on.

Each docstring lists what the part is held to. A broken property is an AssertionError of one line: the part, the property, the counterexample,
as small as hypothesis can make it. What is generated is the same on every call.
"""

from __future__ import annotations

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(f"sharpen.testing makes its input with hypothesis ({error}); pip install 'sharpen[testing]'") from None

from sharpen.testing.environment import check_environment
from sharpen.testing.policy import check_policy
from sharpen.testing.task_source import check_task_source
from sharpen.testing.verifier import check_verifier

__all__ = ["check_environment", "check_policy", "check_task_source", "check_verifier"]
