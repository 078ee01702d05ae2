"""The outbox of one worker among several of one application.

A file has one owner, and which worker of a server starts, dies and comes back
is the server's affair. So the workers share a family of files (events.db,
events.1.db, events.2.db, ...): each takes the first that nobody has open, and
sends what it finds in those that nobody has taken.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._outbox import Outbox
from .errors import JournalError, LoopsError

if TYPE_CHECKING:
    from ._client import AsyncLoopsClient

_logger = logging.getLogger("loops_async")

LOOK_EVERY: Final = 30.0  # seconds, for files that a worker has left
_LONG: Final = 300.0  # seconds for one of them, which may hold what cannot be sent


class _OneOfMany(Outbox):
    """Does not wait for another owner: there are other files."""

    _patience = 0.1


@asynccontextmanager
async def worker_outbox(
    path: Path, client: "AsyncLoopsClient", *, grace: float
) -> AsyncIterator[Outbox]:
    """Open the first file of a family that nobody has open.

    Args:
        path: The first of the family.
        client: What to send with.
        grace: Seconds to go on sending when it closes.

    Raises:
        JournalError: if a file cannot be used for another reason.
    """
    outbox, own = await _first_free(path, client)
    adopting = asyncio.create_task(
        _adopt(path, own, client), name=f"outboxes beside {own}"
    )
    try:
        yield outbox
    finally:
        adopting.cancel()
        try:
            await outbox.aclose(grace)
        finally:
            await asyncio.wait([adopting])


def _family(path: Path) -> Iterator[Path]:
    yield path
    for number in count(1):
        yield path.with_name(f"{path.stem}.{number}{path.suffix}")


async def _first_free(path: Path, client: "AsyncLoopsClient") -> tuple[Outbox, Path]:
    for one in _family(path):
        outbox = _OneOfMany(one, client)
        try:
            return await outbox.__aenter__(), one
        except JournalError as error:
            if not error.in_use:
                raise
    raise AssertionError  # the family is endless


async def _adopt(path: Path, own: Path, client: "AsyncLoopsClient") -> None:
    """Send what is in files that nobody has open, for as long as it runs."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        for one in _family(path):
            if not one.exists():
                break
            if one != own:
                await _send_all(_OneOfMany(one, client))


async def _send_all(left: Outbox) -> None:
    with suppress(LoopsError):  # in use after all, or of no use
        await left.__aenter__()
        try:
            if left.stats().pending:
                _logger.warning("sending what a worker has left: %r", left)
                await left.flush(_LONG)
        finally:
            await left.aclose(0.0)
