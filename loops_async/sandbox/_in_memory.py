"""Requests to a simulator without a network."""

from collections.abc import Mapping

from multidict import CIMultiDict
from yarl import URL

from ._records import SandboxResponse
from ._simulator import Simulator, pause
from ._wire import Request


async def respond(
    simulator: Simulator,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes,
) -> SandboxResponse:
    """Return the response to one request: see `Sandbox.respond`."""
    if not target.startswith("/"):
        raise ValueError(f"target must be a path that begins with /, not {target!r}")
    path, _, query = target.partition("?")
    url = URL.build(path=path, query_string=query, encoded=True)
    request = Request(
        method=method,
        target=target,
        path=url.path,
        query=url.query,
        headers=CIMultiDict(headers),
        body=body,
    )
    outcome = await simulator.process(request, first=False)
    if outcome.fault_kind == "hang":
        raise TimeoutError(f"the request hangs (fault {outcome.fault})")
    await pause(outcome.delay)
    response = outcome.response
    if response is None:
        raise ConnectionError(f"the connection broke (fault {outcome.fault})")
    content_type = {"Content-Type": response.content_type}
    return SandboxResponse(
        status=response.status,
        headers=CIMultiDict({**content_type, **response.headers}),
        body=response.body,
    )
