"""The addresses of Loops and of the proxy."""

from typing import Any

import pytest

from loops_async import ConfigurationError
from loops_async._http.address import DEFAULT_BASE_URL, checked_base_url, proxy_for
from loops_async._http.api_key import Secret

URL = "https://loops.example/api"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the address and the proxy of the developer from the environment."""
    monkeypatch.delenv("LOOPS_BASE_URL", raising=False)
    for name in ("http", "https", "no", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


# The base URL.


@pytest.mark.parametrize(
    ("base_url", "message"),
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
def test_an_invalid_base_url_is_rejected(base_url: Any, message: str) -> None:
    """The message does not show the password."""
    with pytest.raises(ConfigurationError) as caught:
        checked_base_url(base_url)
    text = str(caught.value)
    assert text.startswith(message)
    assert "pass" not in text
    assert len(text.splitlines()) == 1
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "base_url", ["https://exa\nmple.com/api", "https://exa mple.com", "https://x/a\tb"]
)
def test_a_base_url_with_white_space_in_it_is_rejected(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        checked_base_url(base_url)


def test_slashes_at_the_end_of_a_base_url_are_removed() -> None:
    assert checked_base_url(f" {URL}// ") == URL
    assert checked_base_url("http://localhost:8000") == "http://localhost:8000"
    assert checked_base_url("HTTPS://X/api") == "HTTPS://X/api"
    assert checked_base_url("http://notloops.so") == "http://notloops.so"
    assert checked_base_url("https://[::1]:8/api") == "https://[::1]:8/api"


def test_an_argument_takes_precedence_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPS_BASE_URL", "https://env.example/api")
    assert checked_base_url(URL) == URL
    assert checked_base_url(None) == "https://env.example/api"


def test_the_default_is_the_address_of_loops() -> None:
    assert checked_base_url(None) == DEFAULT_BASE_URL == "https://app.loops.so/api"


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_base_url_does_not_select_loops(
    monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    monkeypatch.setenv("LOOPS_BASE_URL", empty)
    for value in (None, empty):
        with pytest.raises(ConfigurationError, match="base_url must begin with"):
            checked_base_url(value)


# The proxy.


def test_the_default_is_no_proxy() -> None:
    assert proxy_for(URL, None) is None


def test_the_environment_defines_a_proxy_for_each_scheme(
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
def test_no_proxy_excludes_hosts(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:1")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert proxy_for(URL, None) is None
    assert proxy_for(URL, "mine.example:1") == "http://mine.example:1"


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000", "LOCALHOST"]
)
def test_local_addresses_are_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:1")
    assert proxy_for(f"http://{host}/api", None) is None
    assert proxy_for(f"http://{host}/api", "http://p:1") == "http://p:1"


def test_a_proxy_without_a_scheme_uses_http_and_its_password_is_masked() -> None:
    proxy = proxy_for(URL, "user:pass@proxy.example:1")
    assert proxy == "http://user:pass@proxy.example:1"
    assert isinstance(proxy, Secret)
    assert "pass" not in repr(proxy)


@pytest.mark.parametrize(
    "proxy", ["socks5://user:hush@proxy.example", "http://[bad", "http://", "ftp://x"]
)
def test_a_proxy_that_is_not_http_is_rejected(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """The message does not show the password."""
    message = r"^proxy must be an http:// or https:// URL$"
    with pytest.raises(ConfigurationError, match=message):
        proxy_for(URL, proxy)
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ConfigurationError, match=message):
        proxy_for(URL, None)
