"""The settings of a client: their checks, and messages that name the setting."""

import gc
import math
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from loops_async import AsyncLoopsClient, ConfigurationError, RetryPolicy
from loops_async._checks import checked_seconds

KEY = "sk-very-secret-0123456789"
URL = "https://loops.example/api"


@pytest.fixture(autouse=True, scope="module")
def no_resource_stays_open() -> Iterator[None]:
    """Collect garbage, so that a client left open by a failed construction warns."""
    yield
    gc.collect()


def refusal_of(**settings: Any) -> str:
    """Return the message of a failed construction, which never contains the API key."""
    with pytest.raises(ConfigurationError) as caught:
        AsyncLoopsClient(**{"api_key": KEY, "base_url": URL, **settings})
    text = str(caught.value)
    assert KEY not in text
    assert KEY not in repr(caught.value)
    assert len(text.splitlines()) == 1
    assert caught.value.__cause__ is None
    return text


_BAD: list[tuple[str, list[object]]] = [
    ("timeout", [0, -1, math.nan, -math.inf, "30", True, []]),
    ("deadline", [0, -1, math.nan, -math.inf, "30", True, []]),
    ("max_connections", [0, -1, 1.5, True, None, "9"]),
    ("rate_limit", [0, -1, math.nan, -math.inf, "10", True]),
    ("retry", [3, None]),
    ("ssl_context", [False, True]),
    ("on_attempt", ["print"]),
    ("dry_run", [1, None]),
    ("base_url", ["loops.example", "", "  ", "ftp://x", "https://", "https:///api"]),
]


@pytest.mark.parametrize(
    ("setting", "value"),
    [(setting, value) for setting, values in _BAD for value in values],
)
def test_the_message_names_an_invalid_setting_and_its_value(
    setting: str, value: object
) -> None:
    text = refusal_of(**{setting: value})
    assert setting in text
    assert repr(value).strip("' ") in text


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("proxy", 5),
        ("proxy", "http://[bad"),
        ("allowed_recipients", 5),
    ],
    ids=["int proxy", "bad IPv6 proxy", "int recipients"],
)
def test_a_setting_of_a_wrong_type_raises_a_configuration_error(
    setting: str, value: object
) -> None:
    assert setting in refusal_of(**{setting: value})


def test_valid_settings_are_accepted() -> None:
    client = AsyncLoopsClient(
        KEY,
        base_url="http://127.0.0.1:8000/api/",
        rate_limit=math.inf,
        timeout=None,
        deadline=math.inf,
        retry=RetryPolicy(attempts=1),
        max_connections=1,
        ssl_context=ssl.create_default_context(),
        proxy="proxy.example:3128",
        allowed_recipients=(),
        on_attempt=print,
    )
    assert KEY not in repr(client)


@pytest.mark.parametrize(
    ("setting", "seconds"),
    [(None, None), (math.inf, None), (1, 1.0), (0.001, 0.001), (30.0, 30.0)],
)
def test_seconds_are_a_float_and_infinity_becomes_none(
    setting: object, seconds: float | None
) -> None:
    checked = checked_seconds("timeout", setting)
    assert checked == seconds
    assert checked is None or type(checked) is float


@pytest.mark.parametrize("name", ["on_attempt", "on_outcome"])
def test_an_async_hook_is_rejected(name: str) -> None:
    """The client calls a hook without awaiting the result."""

    async def hook(_: object) -> None: ...

    def use() -> object:
        if name == "on_attempt":
            return AsyncLoopsClient("key", on_attempt=hook)
        return AsyncLoopsClient("key").stream_events([], on_outcome=hook)

    with pytest.raises(ConfigurationError, match=f"{name} must be a plain function"):
        use()
