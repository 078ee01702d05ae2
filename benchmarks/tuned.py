"""aiohttp tuned as far as possible, as an upper bound for a hand-written sender.

A send is one attempt, without validation, limiter, retries or deadline.
"""

import aiohttp
from multidict import istr
from yarl import URL

_KEY = istr("Idempotency-Key")


def open_session(api_key: str, connections: int = 100) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, ttl_dns_cache=60),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=65536,
        timeout=aiohttp.ClientTimeout(total=30, sock_connect=10),
        headers={
            "Authorization": f"Bearer {api_key}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        },
    )


async def send(session: aiohttp.ClientSession, url: URL, body: bytes, key: str) -> int:
    """Send one event; return the status of the response."""
    response = await session.post(
        url, data=body, headers={_KEY: key}, allow_redirects=False
    )
    content = response.content
    if content.is_eof():
        content.read_nowait()
    else:
        await response.read()
    return response.status
