"""The outbox of one worker among several of one application.

A file has one owner, and which worker of a server starts, dies and comes back
is the server's affair. So the workers share a family of files (events.db,
events.1.db, events.2.db, ...): each takes the first that nobody has open, and
sends what it finds in those that nobody has taken.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loops_async.errors import JournalError, LoopsError

from .outbox import Outbox

if TYPE_CHECKING:
    from loops_async._client import AsyncLoopsClient

_logger = logging.getLogger("loops_async")

LOOK_EVERY: Final = 30.0  # seconds, for files that a worker has left
_MOST: Final = 1000  # files; more would be no workers, but a file system without locks
_LONG: Final = 300.0  # seconds for one of them, which may hold what cannot be sent


class _OneOfMany(Outbox):
    """Does not wait for another owner: there are other files."""

    _patience = 0.1


@asynccontextmanager
async def per_worker(
    path: Path, client: "AsyncLoopsClient", *, grace: float
) -> AsyncIterator[Outbox]:
    """Open the first file of a family that nobody has open.

    Args:
        path: The first of the family.
        client: What to send with.
        grace: Seconds to go on sending when it closes.

    Raises:
        JournalError: if one that comes before is damaged or cannot be written.
    """
    outbox, own = await _first_free(path, client)
    adopting = asyncio.create_task(
        _recover_orphans(path, own, client), name=f"outboxes beside {own}"
    )
    try:
        yield outbox
    finally:
        adopting.cancel()
        try:
            await outbox.aclose(grace)
        finally:
            await asyncio.wait([adopting])


async def _first_free(path: Path, client: "AsyncLoopsClient") -> tuple[Outbox, Path]:
    for number in range(_MOST):
        own = path
        if number:
            own = path.with_name(f"{path.stem}.{number}{path.suffix}")
        outbox = _OneOfMany(own, client)
        try:
            return await outbox.__aenter__(), own
        except JournalError as error:
            if not error.in_use:
                raise
    raise JournalError(f"{path} and {_MOST - 1} more files are all in use")


async def _recover_orphans(path: Path, own: Path, client: "AsyncLoopsClient") -> None:
    """Send what is in files that nobody has open, for as long as it runs."""
    told: set[Path] = set()
    while True:
        await asyncio.sleep(LOOK_EVERY)
        for one in _family(path):
            if one == own:  # a second connection could damage it
                continue
            try:
                await _send_all(_OneOfMany(one, client))
            except LoopsError as error:
                in_use = isinstance(error, JournalError) and error.in_use
                if not in_use and one not in told:
                    told.add(one)
                    text = "what a worker has left cannot be sent: %s"
                    _logger.warning(text, error)


def _family(path: Path) -> list[Path]:
    """Return the files there are."""
    name = re.compile(rf"{re.escape(path.stem)}(\.\d+)?{re.escape(path.suffix)}")
    return sorted(one for one in path.parent.iterdir() if name.fullmatch(one.name))


async def _send_all(left: Outbox) -> None:
    await left.__aenter__()
    try:
        if left.stats().pending:
            _logger.warning("sending what a worker has left: %r", left)
            await left.flush(_LONG)
    finally:
        await left.aclose(0.0)
