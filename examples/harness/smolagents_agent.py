"""A smolagents agent as a harness: ``python smolagents_agent.py code|tools TASK``. Needs ``pip install 'smolagents[openai]'``."""

from __future__ import annotations

import os
import sys

from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool

STOCK = {"nails": 400, "screws": 25}


@tool
def stock(item: str) -> int:
    """How many pieces of an item are in store.

    Args:
        item: the name of the item
    """
    return STOCK[item]


kind, task = sys.argv[1:]
model = OpenAIModel(model_id=os.environ["OPENAI_MODEL"], api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
agent = {"code": CodeAgent, "tools": ToolCallingAgent}[kind](tools=[stock], model=model, max_steps=4, verbosity_level=0)
print(agent.run(task))
