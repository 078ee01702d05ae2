"""The settings: refused by name and value, and never a key in a message."""

import gc
import math
import ssl
import weakref
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops_async import (
    AsyncLoopsClient,
    ConfigurationError,
    RateLimiter,
    RetryPolicy,
)
from loops_async._checks import checked_seconds
from loops_async._http.address import DEFAULT_BASE_URL, checked_base_url, proxy_for
from loops_async._http.api_key import (
    Secret,
    checked_api_key,
    key_source,
)
from loops_async._pacing import shared
from loops_async._pacing.shared import limiter_for

KEY = "sk-very-secret-0123456789"
URL = "https://loops.example/api"


@pytest.fixture(autouse=True, scope="module")
def nothing_left_open() -> Iterator[None]:
    """What a refused client left open would warn here."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the developer's key nor his proxy takes part."""
    for name in ("LOOPS_API_KEY", "LOOPS_BASE_URL", "LOOPS_RATE_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http", "https", "no", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


def refusal_of(**settings: Any) -> str:
    """Return what a client says about its settings; it never says the key."""
    with pytest.raises(ConfigurationError) as caught:
        AsyncLoopsClient(**{"api_key": KEY, "base_url": URL, **settings})
    text = str(caught.value)
    assert KEY not in text
    assert KEY not in repr(caught.value)
    assert len(text.splitlines()) == 1
    assert caught.value.__cause__ is None
    return text


# Bad settings.

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
def test_a_setting_that_cannot_work_is_named_with_its_value(
    setting: str, value: object
) -> None:
    text = refusal_of(**{setting: value})
    assert setting in text
    assert repr(value).strip("' ") in text


@pytest.mark.parametrize(
    ("base_url", "said"),
    [
        (5, "base_url must be a string, not int"),
        (b"https://x", "base_url must be a string, not bytes"),
        ("https://[::1/api", "base_url: Invalid IPv6 URL"),
        ("https://x:99999", "base_url: Port out of range"),
        ("https://x:abc", "base_url: Port could not be cast"),
        ("https://user:pass@x/api", "base_url must not contain credentials"),
        ("https://user@x/api", "base_url must not contain credentials"),
        ("https://x/api?key=1", "base_url must not contain credentials, a query"),
        ("https://x/api#a", "base_url must not contain credentials, a query"),
        ("https://x/api/v1", "base_url must end before /v1: 'https://x/api'"),
        ("https://x/api/v1/", "base_url must end before /v1: 'https://x/api'"),
        ("http://app.loops.so/api", "base_url must begin with https:// for loops.so"),
        ("http://LOOPS.so", "base_url must begin with https:// for loops.so"),
    ],
)
def test_an_address_that_cannot_be_is_refused(base_url: Any, said: str) -> None:
    text = refusal_of(base_url=base_url)
    assert text.startswith(said)
    assert "pass" not in text.replace("pass it", "")


@pytest.mark.parametrize(
    "base_url", ["https://exa\nmple.com/api", "https://exa mple.com", "https://x/a\tb"]
)
def test_an_address_with_white_space_in_it_is_refused(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        checked_base_url(base_url)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("proxy", 5),
        ("proxy", "http://[bad"),
        ("allowed_recipients", 5),
    ],
    ids=["int proxy", "bad IPv6 proxy", "int recipients"],
)
def test_no_setting_raises_anything_but_a_configuration_error(
    setting: str, value: object
) -> None:
    assert setting in refusal_of(**{setting: value})


def test_a_rate_too_small_for_a_float_is_named() -> None:
    assert "rate_limit" in refusal_of(rate_limit=1e-320)


def test_every_good_setting_is_accepted() -> None:
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
    ("given_value", "seconds"),
    [(None, None), (math.inf, None), (1, 1.0), (0.001, 0.001), (30.0, 30.0)],
)
def test_seconds_are_positive_and_no_end_is_none(
    given_value: object, seconds: float | None
) -> None:
    found = checked_seconds("timeout", given_value)
    assert found == seconds
    assert found is None or type(found) is float


# The API key.


@pytest.mark.parametrize(
    ("api_key", "said"),
    [
        ("", "api_key is empty"),
        (" \n", "api_key is empty"),
        (f"{KEY} {KEY}", "api_key contains a space"),
        (f"{KEY}\r\nX-Evil: 1", "api_key contains a space"),
        (f"{KEY}é", "api_key contains a space, a control character or a non-ASCII"),
        (f"{KEY}\x00", "api_key contains a space, a control character"),
        (5, "api_key must be a string or a callable that returns one, not int"),
        (KEY.encode(), "api_key must be a string or a callable that returns one, not"),
        ([KEY], "api_key must be a string or a callable that returns one, not list"),
    ],
)
def test_a_key_that_cannot_be_is_refused_without_being_shown(
    api_key: Any, said: str
) -> None:
    assert refusal_of(api_key=api_key).startswith(said)


def test_a_key_is_taken_without_white_space_around_it() -> None:
    assert checked_api_key(f" {KEY}\n") == KEY


def test_a_key_hides_in_every_repr() -> None:
    key = checked_api_key(KEY)
    assert repr(key) == "'***'"
    assert KEY not in repr({"headers": [key, (key,)]})
    assert f"{key}" == KEY  # what goes on the wire


def frames_of_a_failed_construction() -> list[dict[str, Any]]:
    with pytest.raises(ConfigurationError) as caught:
        AsyncLoopsClient(KEY, base_url=URL, timeout=-1)
    return [dict(entry.locals) for entry in caught.traceback[1:]]  # the first is ours


def test_no_local_of_a_failed_construction_shows_the_key() -> None:
    """Crash reporters print locals."""
    frames = frames_of_a_failed_construction()
    assert len(frames) == 2
    for variables in frames:
        client = variables.pop("self", None)
        assert KEY not in repr(variables)
        assert client is None or KEY not in repr(vars(client))


def test_a_half_made_client_has_a_repr() -> None:
    """Crash reporters call it."""
    (client,) = (
        variables["self"]
        for variables in frames_of_a_failed_construction()
        if "self" in variables
    )
    assert KEY not in repr(client)


def test_an_argument_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPS_API_KEY", "from-env")
    monkeypatch.setenv("LOOPS_BASE_URL", "https://env.example/api")
    monkeypatch.setenv("LOOPS_RATE_LIMIT", "3")
    assert key_source(KEY) == KEY
    assert key_source(None) == "from-env"
    assert checked_base_url(URL) == URL
    assert checked_base_url(None) == "https://env.example/api"
    given_limiter = limiter_for(7, KEY, URL)
    told = limiter_for(None, KEY, URL)
    assert given_limiter is not None
    assert told is not None
    assert (given_limiter.limit, told.limit) == (7, 3)


def test_without_both_the_defaults_hold() -> None:
    assert checked_base_url(None) == DEFAULT_BASE_URL == "https://app.loops.so/api"
    limiter = limiter_for(None, KEY, URL)
    assert limiter is not None
    assert (limiter.limit, limiter.period) == (10, 1.0)
    with pytest.raises(ConfigurationError, match="no API key: pass api_key"):
        key_source(None)


@pytest.mark.parametrize("empty", ["", " "])
def test_empty_is_not_absent(monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    """An empty address must not fall back to the real Loops, nor a key to another."""
    monkeypatch.setenv("LOOPS_API_KEY", empty)
    monkeypatch.setenv("LOOPS_BASE_URL", empty)
    monkeypatch.setenv("LOOPS_RATE_LIMIT", empty)
    with pytest.raises(ConfigurationError, match="base_url must begin with"):
        checked_base_url(None)
    with pytest.raises(ConfigurationError, match="api_key is empty"):
        key_source(None)
    with pytest.raises(ConfigurationError, match="LOOPS_RATE_LIMIT must be a number"):
        limiter_for(None, KEY, URL)
    monkeypatch.setenv("LOOPS_API_KEY", "from-env")
    with pytest.raises(ConfigurationError, match="api_key is empty"):
        key_source(empty)


def test_a_callable_is_asked_later() -> None:
    def never() -> str:
        pytest.fail("asked")

    assert key_source(never) is never


def test_a_dry_run_needs_no_key() -> None:
    AsyncLoopsClient(dry_run=True)


def test_an_address_is_taken_without_its_last_slash() -> None:
    assert checked_base_url(f" {URL}// ") == URL
    assert checked_base_url("http://localhost:8000") == "http://localhost:8000"
    assert checked_base_url("HTTPS://X/api") == "HTTPS://X/api"
    assert checked_base_url("http://notloops.so") == "http://notloops.so"
    assert checked_base_url("https://[::1]:8/api") == "https://[::1]:8/api"


# The proxy.


def test_without_a_word_there_is_no_proxy() -> None:
    assert proxy_for(URL, None) is None


def test_a_proxy_comes_from_the_environment_by_scheme(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", "http://secure.example:1")
    monkeypatch.setenv("http_proxy", "http://plain.example:2")
    assert proxy_for(URL, None) == "http://secure.example:1"
    assert proxy_for("http://x.example", None) == "http://plain.example:2"
    assert proxy_for(URL, "http://mine.example:3") == "http://mine.example:3"
    assert proxy_for(URL, "") is None


@pytest.mark.parametrize(
    "no_proxy", ["loops.example", ".example", "*", "a,loops.EXAMPLE"]
)
def test_no_proxy_is_heeded(monkeypatch: pytest.MonkeyPatch, no_proxy: str) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:1")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert proxy_for(URL, None) is None
    assert proxy_for(URL, "mine.example:1") == "http://mine.example:1"


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000", "LOCALHOST"]
)
def test_the_machine_itself_is_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:1")
    assert proxy_for(f"http://{host}/api", None) is None
    assert proxy_for(f"http://{host}/api", "http://p:1") == "http://p:1"


def test_a_proxy_without_a_scheme_speaks_http_and_hides_its_password() -> None:
    proxy = proxy_for(URL, "user:pass@proxy.example:1")
    assert proxy == "http://user:pass@proxy.example:1"
    assert isinstance(proxy, Secret)
    assert "pass" not in repr(proxy)


def test_another_kind_of_proxy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = refusal_of(proxy="socks5://user:hush@proxy.example")
    assert text == "proxy must be an http:// or https:// URL"
    monkeypatch.setenv("https_proxy", "socks5://user:hush@proxy.example")
    assert "hush" not in refusal_of()


# The limiter.


def test_clients_of_one_key_and_address_share_one_limiter() -> None:
    """They share the team's budget."""
    first = limiter_for(None, checked_api_key(KEY), URL)
    assert first is not None
    assert limiter_for(None, checked_api_key(f"{KEY} "), URL) is first
    assert limiter_for(None, checked_api_key("other"), URL) is not first
    assert limiter_for(None, checked_api_key(KEY), f"{URL}2") is not first


def test_only_an_explicit_rate_gives_a_client_its_own() -> None:
    shared = limiter_for(None, KEY, URL)
    own = limiter_for(10, KEY, URL)
    assert own is not None
    assert own is not shared
    assert limiter_for(10, KEY, URL) is not own
    assert limiter_for(own, KEY, URL) is own


def test_another_rate_from_the_environment_is_another_limiter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = limiter_for(None, KEY, URL)
    monkeypatch.setenv("LOOPS_RATE_LIMIT", "5")
    other = limiter_for(None, KEY, URL)
    assert other is not None
    assert other is not shared
    assert other.limit == 5


def test_the_shared_limiter_lives_as_long_as_its_clients() -> None:
    """A weak registry: the only module state."""
    limiter = limiter_for(None, KEY, URL)
    assert limiter is not None
    gone = weakref.ref(limiter)
    del limiter
    gc.collect()
    assert gone() is None
    assert KEY not in repr(list(shared._limiters.keys()))


def test_a_callable_shares_by_identity() -> None:
    def one() -> str:
        return KEY

    def two() -> str:
        return KEY

    shared = limiter_for(None, one, URL)
    assert limiter_for(None, one, URL) is shared
    assert limiter_for(None, two, URL) is not shared


def test_a_callable_need_not_be_hashable() -> None:
    """Every attrs or dataclass instance that is compared by value is not."""

    @attrs.define
    class Rotating:
        path: str

        def __call__(self) -> str:
            return KEY

    AsyncLoopsClient(Rotating("key.txt"), base_url=URL)


@pytest.mark.parametrize("no_limit", ["inf", "Infinity", "1e999"])
def test_infinite_is_no_limiter(monkeypatch: pytest.MonkeyPatch, no_limit: str) -> None:
    assert limiter_for(math.inf, KEY, URL) is None
    monkeypatch.setenv("LOOPS_RATE_LIMIT", no_limit)
    assert limiter_for(None, KEY, URL) is None


@pytest.mark.parametrize("told", ["0", "-1", "nan", "ten", "10/s"])
def test_a_rate_in_the_environment_that_cannot_be_is_named(
    monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setenv("LOOPS_RATE_LIMIT", told)
    text = refusal_of()
    assert "LOOPS_RATE_LIMIT" in text
    assert told.rstrip("0") in text


@pytest.mark.parametrize(
    ("rate", "limit", "period"),
    [(10, 10, 1.0), (2.5, 3, 1.2), (0.5, 1, 2.0), (1, 1, 1.0), (9.9, 10, 10 / 9.9)],
)
def test_a_fraction_of_a_rate_stretches_the_period(
    rate: float, limit: int, period: float
) -> None:
    """2.5 a second is 3 in 1.2 s: never more than 3 in any one second."""
    limiter = limiter_for(rate, KEY, URL)
    assert limiter is not None
    assert limiter.limit == limit
    assert limiter.period == pytest.approx(period)


@given(st.floats(1e-3, 1e6))
def test_a_rate_is_kept_exactly_and_never_in_a_shorter_time_than_a_second(
    rate: float,
) -> None:
    limiter = limiter_for(rate, KEY, URL)
    assert isinstance(limiter, RateLimiter)
    assert limiter.limit / limiter.period == pytest.approx(rate)
    assert limiter.period >= 1
    assert limiter.limit < rate + 1


@pytest.mark.parametrize("name", ["on_attempt", "on_outcome"])
def test_a_hook_that_would_have_to_be_awaited_is_refused(name: str) -> None:
    """It would never be: a coroutine that is made and dropped."""

    async def hook(_: object) -> None: ...

    def use() -> object:
        if name == "on_attempt":
            return AsyncLoopsClient("key", on_attempt=hook)
        return AsyncLoopsClient("key").stream_events([], on_outcome=hook)

    with pytest.raises(ConfigurationError, match=f"{name} must be a plain function"):
        use()
