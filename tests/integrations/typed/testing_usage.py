"""Right and wrong uses of all of `loops_async.testing`, for type checkers."""

# An expected error makes a type unknown; reports about that type are switched off.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from typing import assert_type

from loops_async import AsyncLoopsClient, Attempt, RateLimiter, Receipt, RetryPolicy
from loops_async.sandbox import Sandbox
from loops_async.testing import InMemoryClient, serving


async def in_memory() -> None:
    async with InMemoryClient() as loops:
        assert_type(loops, InMemoryClient)
        assert_type(loops.sandbox, Sandbox)
        assert_type(await loops.send_event("e", user_id="42"), Receipt)
    client: AsyncLoopsClient = InMemoryClient(Sandbox(rate_limit=10))
    InMemoryClient(
        sandbox=Sandbox(),
        rate_limit=RateLimiter(10),
        timeout=1,
        deadline=None,
        retry=RetryPolicy(attempts=1),
        allowed_recipients=["@example.com"],
        on_attempt=on_attempt,
    )
    await client.aclose()


def on_attempt(attempt: Attempt) -> None: ...


def served() -> None:
    with serving(Sandbox(rate_limit=None)) as sandbox:
        assert_type(sandbox, Sandbox)


async def mistakes(sandbox: Sandbox) -> None:
    InMemoryClient("key")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    InMemoryClient(api_key="key")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    InMemoryClient(session=None)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    InMemoryClient(dry_run=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    InMemoryClient(sandbox.url)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    InMemoryClient(sandbox, 10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    InMemoryClient(retry=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with InMemoryClient():  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    serving()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with serving(sandbox.url):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass
    with serving(sandbox, port=8080):  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        pass
    async with serving(sandbox):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
