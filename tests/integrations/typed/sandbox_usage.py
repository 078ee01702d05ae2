"""Right and wrong uses of all of `loops_async.sandbox`, for type checkers."""

# An expected error makes a type unknown; reports about that type are switched off.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Mapping
from typing import Any, Literal, assert_type

from loops_async.sandbox import (
    FAULTS,
    Behaviour,
    Counts,
    Sandbox,
    SandboxContact,
    SandboxEvent,
    SandboxRequest,
    SandboxResponse,
)

assert_type(FAULTS, Mapping[str, str])


async def sandboxes() -> None:
    async with Sandbox() as sandbox:
        assert_type(sandbox, Sandbox)
        assert_type(sandbox.url, str)
    other = Sandbox(
        api_key="key",
        host="::1",
        port=8080,
        rate_limit=None,
        period=2,
        window="bucket",
        latency=0.01,
        latency_before=(0.0, 0.1),
        processing=0,
        latency_after=(0, 1),
        setup_latency=0.1,
        faults={"503": 0.1, "hang-after": 0},
        seed="tuesday",
        lists={"id": "Main list"},
        properties={"age": "number"},
        behaviour=Behaviour(long_keys="accept"),
        clock=lambda: 0.0,
        max_requests=None,
        max_events=100,
    )
    Sandbox(lists=["id"], seed=1, faults=dict.fromkeys(FAULTS, 0.01))
    assert_type(await other.start(), None)
    other.api_key = "another"
    assert_type(await other.aclose(), None)


def settings(sandbox: Sandbox) -> None:
    assert_type(sandbox.api_key, str)
    assert_type(sandbox.host, str)
    assert_type(sandbox.port, int)
    assert_type(sandbox.rate_limit, int | None)
    assert_type(sandbox.period, float)
    assert_type(sandbox.window, Literal["sliding", "fixed", "bucket"])
    assert_type(sandbox.latency, float | tuple[float, float])
    assert_type(sandbox.latency_before, float | tuple[float, float])
    assert_type(sandbox.processing, float | tuple[float, float])
    assert_type(sandbox.latency_after, float | tuple[float, float])
    assert_type(sandbox.setup_latency, float | tuple[float, float])
    assert_type(sandbox.faults, Mapping[str, float])
    assert_type(sandbox.seed, int | str | None)
    assert_type(sandbox.properties, Mapping[str, str])
    assert_type(sandbox.behaviour, Behaviour)
    assert_type(sandbox.clock(), float)
    assert_type(sandbox.max_requests, int | None)
    assert_type(sandbox.max_events, int | None)
    assert_type(list(sandbox.lists), list[str])


def control(sandbox: Sandbox) -> None:
    sandbox.script("503", None, "close-after")
    sandbox.script(*FAULTS)
    sandbox.down()
    sandbox.down(False)
    sandbox.down(True, drop=True)
    sandbox.advance(86_400)
    sandbox.reset()


def arrived(sandbox: Sandbox) -> None:
    assert_type(sandbox.now, float)
    assert_type(sandbox.events, list[SandboxEvent])
    assert_type(sandbox.contacts, list[SandboxContact])
    assert_type(sandbox.requests, list[SandboxRequest])
    assert_type(sandbox.counts, Counts)
    assert_type(sandbox.contact(email="ada@example.com"), SandboxContact | None)
    assert_type(sandbox.contact(user_id="42"), SandboxContact | None)
    assert_type(sandbox.assert_event("signup"), SandboxEvent)
    sandbox.assert_event(
        "signup",
        email="ada@example.com",
        user_id=None,
        event_properties={"plan": "pro"},
        contact_properties={"firstName": None},
        mailing_lists={"id": True},
        idempotency_key=None,
        times=None,
    )
    assert_type(sandbox.assert_no_event(), None)
    sandbox.assert_no_event("signup", email=None, user_id="42")


async def response(sandbox: Sandbox) -> None:
    response = await sandbox.respond(
        "POST", "/api/v1/events/send", headers={"Authorization": "Bearer key"}, body=b""
    )
    assert_type(response, SandboxResponse)
    assert_type(response.status, int)
    assert_type(response.headers, Mapping[str, str])
    assert_type(response.body, bytes)
    await sandbox.respond("GET", "/api/v1/lists")


def records(
    event: SandboxEvent, contact: SandboxContact, request: SandboxRequest
) -> None:
    assert_type(event.name, str)
    assert_type(event.email, str | None)
    assert_type(event.user_id, str | None)
    assert_type(event.event_properties, Mapping[str, Any])
    assert_type(event.contact_properties, Mapping[str, Any])
    assert_type(event.mailing_lists, Mapping[str, bool])
    assert_type(event.idempotency_key, str | None)
    assert_type(event.at, float)
    assert_type(event.contact_id, str)
    assert_type(contact.id, str)
    assert_type(contact.email, str | None)
    assert_type(contact.user_id, str | None)
    assert_type(contact.properties, Mapping[str, Any])
    assert_type(contact.mailing_lists, Mapping[str, Literal[True]])
    assert_type(request.method, str)
    assert_type(request.path, str)
    assert_type(request.headers, Mapping[str, str])
    assert_type(request.body, bytes)
    assert_type(request.status, int | None)
    assert_type(request.fault, str | None)
    assert_type(request.at, float)


def counts(total: Counts) -> None:
    assert_type(total.requests, int)
    assert_type(total.by_status, Mapping[int, int])
    assert_type(total.unanswered, int)
    assert_type(total.limited, int)
    assert_type(total.faults, Mapping[str, int])
    assert_type(total.accepted, int)
    assert_type(total.duplicates, int)


def behaviours() -> None:
    behaviour = Behaviour(
        uncounted=frozenset({401, 429}),
        retry_after="seconds",
        limited_body="empty",
        conflict_text="different-body",
        burned_by=frozenset({200, 500}),
        concurrent_duplicates="accept",
        long_keys="accept",
        unknown_properties="refuse",
        update_creates_by_user_id=True,
        fold_email=False,
        two_contacts="user-id",
        length="utf-16",
        nested_values="accept",
        unknown_lists="ignore",
        unsubscribed_lists="refuse",
        unknown_route_checks_key=True,
        trailing_slash="redirect",
        require_content_type=True,
        emptied_properties="absent",
    )
    assert_type(behaviour.uncounted, frozenset[int])
    assert_type(behaviour.retry_after, Literal["omit", "seconds", "date"])
    assert_type(behaviour.fold_email, bool)


async def mistakes(sandbox: Sandbox, behaviour: Behaviour, event: SandboxEvent) -> None:
    Sandbox("key")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Sandbox(api_key=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Sandbox(port="8080")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Sandbox(rate_limit=2.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Sandbox(period=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Sandbox(window="rolling")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Sandbox(latency="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Sandbox(latency=(0.0, 0.1, 0.2))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Sandbox(faults=["503"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Sandbox(faults={"503": "often"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Sandbox(faults={503: 0.1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Sandbox(lists=42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Sandbox(properties={"age": int})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Sandbox(behaviour={"long_keys": "accept"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Sandbox(clock=0.0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Sandbox(errors={"503": 0.1})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Sandbox(max_events="all")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sandbox.script(503)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sandbox.script(["503", "502"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sandbox.down(drop="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sandbox.down(down=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    sandbox.advance("1 day")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sandbox.start()  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    await sandbox.respond("GET")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await sandbox.respond("GET", "/", {})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await sandbox.respond("GET", "/", body="{}")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sandbox.respond("GET", "/")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    sandbox.url()  # type: ignore[operator]  # pyright: ignore[reportCallIssue]
    sandbox.url = "http://localhost"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    sandbox.contact("ada@example.com")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    sandbox.assert_event()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    sandbox.assert_event("signup", "ada@example.com")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    sandbox.assert_event("signup", email=42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sandbox.assert_event("signup", times="once")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sandbox.assert_event("signup", event_properties=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sandbox.assert_no_event("signup", times=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    sandbox.events.add(event)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    event.name = "login"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    event.event_properties["plan"] = "free"  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    behaviour.long_keys = "refuse"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    Behaviour("seconds")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    Behaviour(retry_after="minutes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Behaviour(fold_email="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Behaviour(quirks=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    FAULTS["teapot"] = "respond 418"  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    with Sandbox():  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
