"""The tools of a Model Context Protocol server, started anew for each episode (stdio) or reached at a URL, through the ``mcp`` package."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from sharpen.environments.tools import Caller, Limits, Toolbox, ToolEnvironment, ToolProblem
from sharpen.errors import EnvironmentFault, SettingsError, nearest
from sharpen.records import Task

START_S = 60.0  # a server has so long to start and to list its tools; the client itself would wait for five minutes


class Mcp(Limits, frozen=True, kw_only=True, tag_field="environment", tag="mcp"):
    """``command`` starts a server that talks over its standard streams; or ``url`` is one that is up.

    ``tools`` are the names to offer, all of them where it is empty. ``env`` is added to the few harmless variables that ``mcp`` hands on; what a
    server prints to its standard error is dropped. Servers' state lasts an episode with ``command``, and as long as the server with ``url``.
    """

    command: tuple[str, ...] = ()
    url: str = ""
    tools: tuple[str, ...] = ()
    env: dict[str, str] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.command) == bool(self.url):
            raise SettingsError("an MCP environment needs either command or url")


def mcp_environment(settings: Mcp) -> ToolEnvironment:
    """The environment of such a server. A server that does not start, or dies during an episode, is an EnvironmentFault: nobody's failure."""
    try:
        import mcp
    except ImportError as error:
        raise SettingsError(f"MCP tools need the mcp package ({error}); pip install 'sharpen[mcp]'") from None

    @asynccontextmanager
    async def open_(task: Task) -> AsyncIterator[Toolbox]:
        server: Any = settings.url
        async with AsyncExitStack() as stack:
            if settings.command:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))  # noqa: SIM115  # a text stream with a file number, for its errors
                parameters = mcp.StdioServerParameters(command=settings.command[0], args=list(settings.command[1:]), env=settings.env)
                server = mcp.stdio_client(parameters, errlog=nowhere)
            try:
                async with asyncio.timeout(START_S):
                    box = await _toolbox(await stack.enter_async_context(mcp.Client(server)), settings)
            except TimeoutError:
                where = settings.url or settings.command[0]
                raise EnvironmentFault(f"the MCP server {where} did not start: it gave no list of tools within {START_S:g} s") from None
            yield box

    return ToolEnvironment("mcp", open_, settings)


async def _toolbox(client: Any, settings: Mcp) -> Toolbox:
    offered: dict[str, Any] = {}
    cursor = None
    while True:
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            if tool.name in offered:
                raise SettingsError(f"the MCP server offers two tools called {tool.name!r}")
            offered[tool.name] = tool
        cursor = page.next_cursor
        if not cursor:
            break
    for name in settings.tools:
        if name not in offered:
            raise SettingsError(f"the MCP server has no tool {name!r}{nearest(name, offered)}")
    chosen = [offered[name] for name in settings.tools or offered]
    schemas = tuple(
        {"type": "function", "function": {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}}
        for tool in chosen
    )
    return Toolbox(schemas, {tool.name: _caller(client, tool.name) for tool in chosen})


def _caller(client: Any, name: str) -> Caller:
    from mcp import MCPError

    async def call(arguments: dict[str, Any]) -> str:
        try:
            result = await client.call_tool(name, arguments)
        except MCPError as error:
            if "closed" in str(error).lower():
                raise EnvironmentFault(f"the MCP server died during {name}: {error}") from error
            raise ToolProblem(str(error)) from error  # the server's own refusal of the arguments: for the policy
        text = "\n".join(block.text if block.type == "text" else f"[{block.type}]" for block in result.content)
        if result.is_error:
            raise ToolProblem(text)
        return text

    return call
