"""The hand-written loop that results are relative to. Do not tune it."""

import uuid
from typing import Any

import aiohttp


def open_session(api_key: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers={"Authorization": f"Bearer {api_key}"})


async def send_event(
    session: aiohttp.ClientSession, base_url: str, body: dict[str, Any]
) -> Any:
    async with session.post(
        f"{base_url}/v1/events/send",
        json=body,
        headers={"Idempotency-Key": str(uuid.uuid4())},
    ) as response:
        response.raise_for_status()
        return await response.json()
