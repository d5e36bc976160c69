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
    """The assistant turns that solve a task, to learn from; or give each task its own as "gold" in tasks.jsonl."""
    call = {"name": "calculator", "arguments": {"expression": re.findall(r"\d+ \* \d+", task.prompt[-1].content)[0]}}
    return [{"tool_calls": [call]}, task.reference]


def verify(answer, reference):
    return re.findall(r"\d+", answer)[-1:] == [reference]
