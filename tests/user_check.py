"""Tests of an application; run in an environment with only the wheel and pytest."""

import asyncio

from loops_async import AsyncLoopsClient


async def sign_up(email: str, loops: AsyncLoopsClient) -> None:
    await loops.send_event("signup", email=email)


def test_a_sign_up_sends_an_event(loops_sandbox, loops_client):
    asyncio.run(sign_up("ada@example.com", loops_client))
    loops_sandbox.assert_event("signup", email="ada@example.com")


def test_a_lost_response_does_not_lead_to_a_second_event(loops_sandbox, loops_client):
    loops_sandbox.script("close-after")  # accept, then close without a response
    asyncio.run(sign_up("ada@example.com", loops_client))
    loops_sandbox.assert_event("signup", times=1)
