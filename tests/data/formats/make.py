"""Writes this folder's files with the packages whose formats they are: ``python tests/data/formats/make.py PACKAGE``.

PACKAGE is ``inspect`` (needs inspect-ai), ``atif`` or ``verifiers``; each in an environment of its own, since they are no dependencies.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent


def inspect() -> None:
    """An evaluation run on Inspect's mock model: a tool call and its result, reasoning, a score; once whole, once in chunks."""
    import tiktoken
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.log._recorders.chunked.convert import convert_eval_logs_to_chunked
    from inspect_ai.model import ChatMessageAssistant, ContentReasoning, ContentText, ModelOutput, get_model
    from inspect_ai.model._model_output import ChatCompletionChoice
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate, system_message, use_tools
    from inspect_ai.tool import tool

    # Its encodings come from the network; here they would only count the mock model's tokens.
    tiktoken.get_encoding = lambda name: SimpleNamespace(encode=lambda text, **_: text.split())

    @tool
    def add():  # type: ignore[no-untyped-def]
        async def execute(x: int, y: int) -> str:
            """Add two numbers.

            Args:
                x: The first.
                y: The second.
            """
            return str(x + y) + " " * 200  # long enough to become an attachment

        return execute

    def outputs():  # type: ignore[no-untyped-def]
        for _ in range(2):
            yield ModelOutput.for_tool_call("mockllm/model", "add", {"x": 1, "y": 2})
            thought = [ContentReasoning(reasoning="one and two"), ContentText(text="The sum is 3.")]
            message = ChatMessageAssistant(content=thought, source="generate")
            yield ModelOutput(model="mockllm/model", choices=[ChatCompletionChoice(message=message, stop_reason="stop")])

    task = Task(
        dataset=[Sample(id="sum", input="What is 1 + 2?", target="3")],
        solver=[system_message("Use the tool."), use_tools(add()), generate()],
        scorer=includes(),
        epochs=2,
        name="adding",
    )
    folder = HERE / "logs"
    logs = eval(task, model=get_model("mockllm/model", custom_outputs=outputs()), log_dir=str(folder), display="none", max_samples=1)
    whole = HERE / "inspect.eval"
    shutil.move(str(logs[0].location).removeprefix("file://"), whole)
    shutil.rmtree(folder)
    convert_eval_logs_to_chunked(str(whole), str(HERE / "chunked"), overwrite=True, chunk_size=2)
    (HERE / "chunked" / "inspect.eval").replace(HERE / "inspect_chunked.eval")
    (HERE / "chunked").rmdir()


def atif() -> None:
    """Models of the atif package, dumped as it dumps them: ids, logprobs, reasoning, calls, a sub-agent."""
    from atif import Agent, FinalMetrics, Metrics, Observation, ObservationResult, Step, SubagentTrajectoryRef, ToolCall, Trajectory

    schema = {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}}}}
    call = ToolCall(tool_call_id="c1", function_name="run", arguments={"cmd": "ls", "timeout": None})
    helper = Trajectory(
        schema_version="ATIF-v1.8",
        trajectory_id="helper-1",
        agent=Agent(name="helper", version="1"),
        steps=[Step(step_id=1, source="user", message="look"), Step(step_id=2, source="agent", message="seen")],
    )
    results = [
        ObservationResult(source_call_id="c1", content="a.txt", subagent_trajectory_ref=[SubagentTrajectoryRef(trajectory_id="helper-1")])
    ]
    trajectory = Trajectory(
        schema_version="ATIF-v1.8",
        session_id="s1",
        agent=Agent(name="agent", version="2.1", model_name="some-model", tool_definitions=[schema]),
        steps=[
            Step(step_id=1, source="system", message="You are helpful."),
            Step(step_id=2, source="user", message="List the files."),
            Step(
                step_id=3,
                source="agent",
                message="",
                reasoning_content="ls will do",
                tool_calls=[call],
                observation=Observation(results=results),
                metrics=Metrics(
                    prompt_token_ids=[1, 2, 3], completion_token_ids=[4, 5], logprobs=[-0.1, -0.2], prompt_tokens=3, completion_tokens=2
                ),
            ),
            Step(
                step_id=4,
                source="agent",
                message="There is a.txt.",
                metrics=Metrics(prompt_token_ids=[1, 2, 3, 4, 5, 6], completion_token_ids=[7, 8]),
            ),
        ],
        final_metrics=FinalMetrics(total_prompt_tokens=9, total_completion_tokens=4),
        subagent_trajectories=[helper],
    )
    (HERE / "atif.json").write_text(json.dumps(trajectory.to_json_dict(), indent=1) + "\n")


def verifiers() -> None:
    """An episode of verifiers' own types, written by its trace store: two branches, ids and masks, rewards; and one that broke."""
    from verifiers.v1.configs.agent import WireAgentConfig
    from verifiers.v1.episode import EnvInfo, Episode
    from verifiers.v1.graph import MessageNode
    from verifiers.v1.task import TaskData
    from verifiers.v1.trace import AgentInfo, ModelCall, Trace, TraceTask
    from verifiers.v1.types import AssistantMessage, SystemMessage, Tool, ToolCall, ToolMessage, Usage, UserMessage
    from verifiers.v1.utils.trace_store import TRACES_FILE, write_episode

    (HERE / TRACES_FILE).unlink(missing_ok=True)
    task = TraceTask(type="Task", data=TaskData(prompt="What is 1 + 2?"), key="adding-1")
    agent = AgentInfo(config=WireAgentConfig(model="some-model"))
    asked = AssistantMessage(reasoning_content="add them", tool_calls=[ToolCall(id="c1", name="add", arguments='{"x": 1, "y": 2}')])
    nodes = [
        MessageNode(
            message=SystemMessage(content="Add."), token_ids=[1, 2], mask=[False] * 2, tools=[Tool(name="add", description="Adds.")]
        ),
        MessageNode(parent=0, message=UserMessage(content="What is 1 + 2?"), token_ids=[3], mask=[False]),
        MessageNode(parent=1, message=asked, sampled=True, token_ids=[4, 5, 6], mask=[False, True, True], logprobs=[-0.1, -0.2]),
        MessageNode(parent=2, message=ToolMessage(tool_call_id="c1", content="3"), token_ids=[7], mask=[False]),
        MessageNode(parent=3, message=AssistantMessage(content="3"), sampled=True, token_ids=[4, 8], mask=[False, True], logprobs=[-0.3]),
        MessageNode(parent=1, message=UserMessage(content="Be brief."), token_ids=[9], mask=[False]),
        MessageNode(
            parent=5, message=AssistantMessage(content="Three."), sampled=True, token_ids=[4, 10], mask=[False, True], logprobs=[-0.4]
        ),
    ]
    calls = [
        ModelCall(node=at, model="some-model", finish_reason="stop", usage=Usage(prompt_tokens=5, completion_tokens=2)) for at in (2, 4, 6)
    ]
    trace = Trace(task=task, agent=agent, nodes=nodes, calls=calls, ok=True, is_completed=True, stop_condition="agent_completed")
    trace.record_reward("correct", 0.5, 2.0)
    write_episode(HERE, Episode(env=EnvInfo(id="adding"), task=task, traces=[trace], ok=True))
    broken = Trace(task=task, agent=agent, nodes=nodes[:2])
    broken.record_error(RuntimeError("the sandbox is gone"))
    write_episode(HERE, Episode(env=EnvInfo(id="adding"), task=task, traces=[broken]))
    (HERE / TRACES_FILE).replace(HERE / "verifiers_traces.jsonl")


if __name__ == "__main__":
    {"inspect": inspect, "atif": atif, "verifiers": verifiers}[sys.argv[1]]()
