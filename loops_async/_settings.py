"""What a client is told: the key, the address, the proxy, the times, the limit."""

import inspect
import ipaddress
import math
import os
import urllib.request
import weakref
from collections.abc import Awaitable, Callable, Hashable
from types import NoneType
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit

import attrs

from ._limiter import RateLimiter
from .errors import ConfigurationError

DEFAULT_BASE_URL: Final = "https://app.loops.so/api"
DEFAULT_RATE: Final = 10.0

_T = TypeVar("_T")

KeySource: TypeAlias = str | Callable[[], str | Awaitable[str]]


class Secret(str):
    """A text whose repr hides it, in whatever dict or traceback it turns up."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@attrs.frozen
class NoKey:
    """Stands for a key of a wrong type, which may be the key all the same."""

    kind: str


def hidden(given: object) -> object:
    """Hide a key before a frame that may raise holds it in its locals."""
    if isinstance(given, str):
        return Secret(given)
    if given is None or callable(given):
        return given
    return NoKey(type(given).__name__)


def checked_key(given: object) -> Secret:
    """Return the API key without white space around it.

    Raises:
        ConfigurationError: if it cannot be one; the text does not show it.
    """
    if not isinstance(given, str):
        kind = given.kind if isinstance(given, NoKey) else type(given).__name__
        msg = f"api_key must be a string or a callable that returns one, not {kind}"
        raise ConfigurationError(msg)
    key = Secret(given.strip())
    if not key:
        msg = "api_key is empty: pass it or set LOOPS_API_KEY"
        raise ConfigurationError(msg)
    if not key.isascii() or not key.isprintable() or " " in key:
        msg = "api_key has a space, a control character or a non-ASCII character in it"
        raise ConfigurationError(msg)
    return key


def key_source(given: object) -> KeySource:
    """Return the checked key, from the environment if not given, or the callable."""
    if given is None:
        given = hidden(os.environ.get("LOOPS_API_KEY"))
    if given is None:
        msg = "no API key: pass api_key=... or set LOOPS_API_KEY"
        raise ConfigurationError(msg)
    return given if callable(given) else checked_key(given)


def checked_base_url(given: str | None) -> str:
    """Return the base URL without a slash at its end."""
    # Empty is not absent: it must not fall back to the real Loops.
    url = os.environ.get("LOOPS_BASE_URL", DEFAULT_BASE_URL) if given is None else given
    if not isinstance(url, str):
        msg = f"base_url must be a string, not {type(url).__name__}"
        raise ConfigurationError(msg)
    url = url.strip().rstrip("/")
    if not url.isprintable() or " " in url:
        msg = f"base_url must not have white space or control characters in it: {url!r}"
        raise ConfigurationError(msg)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        msg = f"base_url: {error}"
        raise ConfigurationError(msg) from None
    if parts.scheme not in ("https", "http") or not host:
        msg = f"base_url must begin with https:// (or http://) and a host, not {url!r}"
        raise ConfigurationError(msg)
    if parts.username or parts.password or parts.query or parts.fragment:
        msg = "base_url must not hold credentials, a query or a fragment"
        raise ConfigurationError(msg)
    if parts.path.endswith("/v1"):
        msg = f"base_url must end before /v1: {url.removesuffix('/v1')!r}"
        raise ConfigurationError(msg)
    if parts.scheme == "http" and (host == "loops.so" or host.endswith(".loops.so")):
        msg = "base_url must begin with https:// for loops.so: the key would show"
        raise ConfigurationError(msg)
    return url


def proxy_for(base_url: str, given: str | None) -> str | None:
    """Return the proxy to use, from the environment if not given; read once."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    proxy = checked_type("proxy", given, str, NoneType)
    if proxy is None:
        if _is_loopback(host) or urllib.request.proxy_bypass(host):
            return None
        proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        usable = (
            urlsplit(proxy).scheme in ("http", "https") and urlsplit(proxy).hostname
        )
    except ValueError:
        usable = False
    if not usable:
        msg = "proxy must be an http:// or https:// URL"
        raise ConfigurationError(msg)
    return Secret(proxy)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def checked_seconds(name: str, given: object) -> float | None:
    """Return a positive number of seconds, or None for no end, as inf is."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
        msg = f"{name} must be a positive number of seconds or None, not {given!r}"
        raise ConfigurationError(msg)
    return None if given >= _FOR_EVER else float(given)


_FOR_EVER: Final = 1e9  # seconds; event loops cannot count much farther


def checked_count(name: str, given: object) -> int:
    if type(given) is not int or given < 1:
        msg = f"{name} must be a whole number from 1, not {given!r}"
        raise ConfigurationError(msg)
    return given


def checked_type(name: str, given: _T, *kinds: Any) -> _T:
    if not isinstance(given, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        msg = f"{name} must be {expected}, not {given!r}"
        raise ConfigurationError(msg)
    return given


def checked_hook(name: str, given: Any) -> Any:
    """Return it, if it can be called in the middle of sending, or is None."""
    if inspect.iscoroutinefunction(given):
        msg = f"{name} must be a plain function: nothing is sent while it runs"
        raise ConfigurationError(msg)
    return checked_type(name, given, Callable, NoneType)


def limiter_for(
    given: float | RateLimiter | None, key: KeySource, base_url: str
) -> RateLimiter | None:
    """Return the limiter of a client; None for no limit.

    Clients of one process that give no limit and have the same key and base
    URL share one: they share the team's budget.
    """
    if isinstance(given, RateLimiter):
        return given
    if given is not None:
        return _limiter(given, "rate_limit")
    rate: float = DEFAULT_RATE
    told = os.environ.get("LOOPS_RATE_LIMIT")
    if told is not None:
        try:
            rate = float(told)
        except ValueError:
            msg = f"LOOPS_RATE_LIMIT must be a number, not {told!r}"
            raise ConfigurationError(msg) from None
    budget = (_identity(key), base_url, rate)
    limiter = _shared.get(budget)
    if limiter is None:
        limiter = _limiter(rate, "LOOPS_RATE_LIMIT")
        if limiter is not None:
            _shared[budget] = limiter
    return limiter


def _identity(key: KeySource) -> Hashable:
    try:
        hash(key)
    except TypeError:  # a callable of the user's, kept alive by its client
        return id(key)
    return key


_shared: weakref.WeakValueDictionary[Hashable, RateLimiter] = (
    weakref.WeakValueDictionary()
)


def _limiter(rate: object, name: str) -> RateLimiter | None:
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
        msg = f"{name} must be a positive number per second, not {rate!r}"
        raise ConfigurationError(msg)
    if rate >= _NO_LIMIT:
        return None
    # 2.5 a second is 3 in 1.2 s: never more than 3 in any one second.
    limit = math.ceil(rate)
    period = limit / rate
    if period > _FOR_EVER:
        msg = f"{name} is too small: {rate!r} per second"
        raise ConfigurationError(msg)
    return RateLimiter(limit, period)


_NO_LIMIT: Final = 1e9  # a second, and more than any machine can send
