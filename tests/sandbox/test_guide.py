"""The guide of the sandbox: its Python runs, its curl commands name real endpoints."""

import ast
import asyncio
import inspect
import json
import re

import loops_async.sandbox
from loops_async.sandbox import Sandbox

from .support import fetch

GUIDE = loops_async.sandbox.__doc__ or ""
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_python_of_the_guide_runs() -> None:
    async def main() -> None:
        names: dict[str, object] = {}
        for block in BLOCKS:
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            result = eval(compile(block, "guide", "exec", flags), names)
            if inspect.isawaitable(result):
                await result

    assert len(BLOCKS) == 6
    asyncio.run(main())


def test_the_curl_commands_of_the_guide_succeed() -> None:
    commands = re.findall(
        r"^curl (-X POST )?\$url/(\w+)(?: -d '(.*)')?", GUIDE, re.MULTILINE
    )
    assert len(commands) == 7

    async def main() -> None:
        async with Sandbox() as sandbox:
            for post, name, body in commands:
                response = await fetch(
                    sandbox,
                    "POST" if post else "GET",
                    f"/_sandbox/{name}",
                    json.loads(body) if body else None,
                )
                assert response.status == 200, (name, body)

    asyncio.run(main())
