"""Right and wrong uses of all of `loops_async.taskiq`, for type checkers."""

# An expected error makes a type unknown; reports about that type are switched off.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from typing import Annotated, Any, assert_type

from taskiq import AsyncTaskiqTask, Context, InMemoryBroker, TaskiqDepends

from loops_async import AsyncLoopsClient, Event
from loops_async.taskiq import SendEvent, add_loops, get_client

broker = InMemoryBroker()
send_event = add_loops(broker)
assert_type(send_event, SendEvent)


def client() -> AsyncLoopsClient:
    return AsyncLoopsClient(rate_limit=5)


add_loops(broker, client=client, deadline=60)


@broker.task
async def welcome(
    event: Event, loops: AsyncLoopsClient = TaskiqDepends(get_client)
) -> int:
    assert_type(loops, AsyncLoopsClient)
    return (await loops.send_event(event)).attempts


@broker.task
async def farewell(
    event: Event, loops: Annotated[AsyncLoopsClient, TaskiqDepends(get_client)]
) -> None:
    await loops.send_event(event)


async def enqueue(event: Event, context: Context) -> None:
    task = await send_event.kiq(event)
    assert_type(task, AsyncTaskiqTask[dict[str, Any]])
    assert_type((await task.wait_result()).return_value, dict[str, Any])
    await send_event.kicker().with_labels(priority=1).kiq(event)
    assert_type(get_client(context), AsyncLoopsClient)


async def mistakes(event: Event, context: Context) -> None:
    add_loops()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add_loops("redis://localhost")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add_loops(broker, client)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add_loops(broker, client=client())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add_loops(broker, client=enqueue)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add_loops(broker, deadline="4 minutes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add_loops(broker, deadline=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    send_event.kiq(event)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    await send_event.kiq()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await send_event.kiq("signup")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await send_event.kiq([event])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await send_event.kiq("signup", email="ada@example.com")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await send_event.kiq(event, context)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    assert (await send_event.kiq(event)).attempts  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    get_client(broker)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await get_client(context)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
