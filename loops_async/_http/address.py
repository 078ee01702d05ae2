"""The addresses of Loops and of the proxy, and how a client connects to them."""

import ipaddress
import os
import ssl
import urllib.request
from types import NoneType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs

from loops_async._checks import checked_count, checked_type
from loops_async.errors import ConfigurationError

from .api_key import Secret
from .protocol import Transport

if TYPE_CHECKING:
    from aiohttp import ClientSession

DEFAULT_BASE_URL: Final = "https://app.loops.so/api"


def checked_base_url(value: str | None) -> str:
    """Return the base URL without a trailing slash; None reads LOOPS_BASE_URL."""
    # An empty string is an error: it must not fall back to the real Loops.
    url = os.environ.get("LOOPS_BASE_URL", DEFAULT_BASE_URL) if value is None else value
    if not isinstance(url, str):
        msg = f"base_url must be a string, not {type(url).__name__}"
        raise ConfigurationError(msg)
    url = url.strip().rstrip("/")
    if not url.isprintable() or " " in url:
        msg = f"base_url must not contain white space or control characters: {url!r}"
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
        msg = "base_url must not contain credentials, a query or a fragment"
        raise ConfigurationError(msg)
    if parts.path.endswith("/v1"):
        msg = f"base_url must end before /v1: {url.removesuffix('/v1')!r}"
        raise ConfigurationError(msg)
    if parts.scheme == "http" and (host == "loops.so" or host.endswith(".loops.so")):
        msg = (
            "base_url must begin with https:// for loops.so, because http would "
            "expose the API key"
        )
        raise ConfigurationError(msg)
    return url


def proxy_for(base_url: str, value: str | None) -> str | None:
    """Return the URL of the proxy, or None for direct connections.

    Args:
        base_url: The address that is reached through the proxy.
        value: The proxy that the caller passed; None means that of the environment.
    """
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    proxy = checked_type("proxy", value, str, NoneType)
    if proxy is None:
        if _is_loopback(host) or urllib.request.proxy_bypass(host):
            return None
        proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        parsed = urlsplit(proxy)
        is_valid = parsed.scheme in ("http", "https") and parsed.hostname
    except ValueError:
        is_valid = False
    if not is_valid:
        msg = "proxy must be an http:// or https:// URL"
        raise ConfigurationError(msg)
    return Secret(proxy)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@attrs.frozen
class Connections:
    """The connection settings of one client; a call makes an event loop's transport.

    Attributes:
        session: A session to borrow, or None.
        max_connections: The greatest number of requests in flight.
        ssl_context: The TLS settings; None means aiohttp's default.
        proxy: The URL of an HTTP proxy, or None.
        usual_timeout: The timeout of most requests in seconds; None means no limit.
    """

    session: "ClientSession | None"
    max_connections: int
    ssl_context: ssl.SSLContext | None
    proxy: str | None
    usual_timeout: float | None

    @classmethod
    def checked(
        cls,
        base_url: str,
        usual_timeout: float | None,
        *,
        session: "ClientSession | None",
        max_connections: int,
        ssl_context: ssl.SSLContext | None,
        proxy: str | None,
        import_now: bool,
    ) -> "Connections":
        """Check the settings and return them.

        Args:
            base_url: The address of Loops.
            usual_timeout: As in the attributes.
            session: As in the attributes.
            max_connections: As in the attributes.
            ssl_context: As in the attributes.
            proxy: The URL of an HTTP proxy; None means that of the environment.
            import_now: Whether to import aiohttp, which takes about 0.1 s, now
                rather than in the first request.

        Raises:
            ConfigurationError: If a setting is invalid.
        """
        if import_now:
            from . import transport  # noqa: F401, PLC0415
        return cls(
            session,
            checked_count("max_connections", max_connections),
            checked_type("ssl_context", ssl_context, ssl.SSLContext, NoneType),
            proxy_for(base_url, proxy),
            usual_timeout,
        )

    async def __call__(self) -> Transport:
        """Return a transport for the running event loop; does not wait.

        Raises:
            ConfigurationError: If the borrowed session cannot be used in this event
                loop.
        """
        from .transport import AiohttpTransport  # noqa: PLC0415

        transport = AiohttpTransport(
            self.session,
            max_connections=self.max_connections,
            usual_timeout=self.usual_timeout,
            ssl_context=self.ssl_context,
            proxy=self.proxy,
        )
        await transport.open()
        return transport
