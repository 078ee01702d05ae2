"""Send with the wheel; run in an environment with only the wheel."""

import asyncio
import importlib.resources
import importlib.util
from pathlib import Path

from loops_async import AsyncLoopsClient, Event, InputOptions, Outbox, backfill
from loops_async.sandbox import Sandbox

assert importlib.resources.files("loops_async").joinpath("py.typed").is_file()
assert importlib.util.find_spec("orjson") is None, "this environment has extras"


async def main() -> None:
    async with Sandbox() as sandbox:
        async with AsyncLoopsClient(sandbox.api_key, base_url=sandbox.url) as loops:
            await loops.send_event("signup", email="ada@example.com")
            async with Outbox("events.db", loops) as outbox:
                await outbox.put(Event("signup", email="bo@example.com"))
                assert await outbox.flush(10) == 0
            Path("old.csv").write_text("email\ncy@example.com\n")  # noqa: ASYNC240
            await backfill(
                "old.csv", loops, input_options=InputOptions(event_name="signup")
            )
        for name in ("ada", "bo", "cy"):
            sandbox.assert_event("signup", email=f"{name}@example.com")


asyncio.run(main())
print("sent from the wheel")  # noqa: T201
