"""A user's own tests; run in an environment with nothing but the wheel and pytest."""

import asyncio

from loops_async import AsyncLoopsClient


async def sign_up(email: str, loops: AsyncLoopsClient) -> None:
    await loops.send_event("signup", email=email)


def test_signing_up_tells_loops(loops_sandbox, loops_client):
    asyncio.run(sign_up("ada@example.com", loops_client))
    loops_sandbox.assert_event("signup", email="ada@example.com")


def test_a_lost_answer_is_no_second_event(loops_sandbox, loops_client):
    loops_sandbox.script("close-after")  # accepts, and hangs up without an answer
    asyncio.run(sign_up("ada@example.com", loops_client))
    loops_sandbox.assert_event("signup", times=1)
