"""Run in an environment with nothing but the wheel: does it send?"""

import asyncio
import importlib.resources
import importlib.util

from loops_async import AsyncLoopsClient
from loops_async.sandbox import Sandbox

assert importlib.resources.files("loops_async").joinpath("py.typed").is_file()
assert importlib.util.find_spec("orjson") is None, "not an empty environment"


async def main() -> None:
    async with Sandbox() as sandbox:
        async with AsyncLoopsClient(sandbox.api_key, base_url=sandbox.url) as loops:
            await loops.send_event("signup", email="ada@example.com")
        sandbox.assert_event("signup", email="ada@example.com")


asyncio.run(main())
print("sent from the wheel")  # noqa: T201
