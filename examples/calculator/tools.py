"""A calculator as a tool, and how an expert uses it. Type hints and docstring are what the model is shown."""

import re


def calculator(expression: str) -> str:
    """Compute an expression.

    Args:
        expression: Whole numbers with + - * / and parentheses.
    """
    if not re.fullmatch(r"[\d+\-*/() ]{1,100}", expression) or "**" in expression:
        raise ValueError("only whole numbers, + - * / and parentheses")
    return str(eval(expression))  # nothing but numbers and operators gets here


def expert(task):
    """The turns that solve a task: one call, then its result."""
    [expression] = re.findall(r"\d[\d *]+\d", task.prompt[-1].content)
    return [{"tool_calls": [{"name": "calculator", "arguments": {"expression": expression}}]}, task.reference]
