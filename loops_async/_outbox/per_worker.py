"""One outbox for each worker process of an application.

A file has one owner, and the server decides which of its workers start, stop
and restart. So the workers share a family of files (events.db, events.1.db,
events.2.db, ...): each worker opens the first file that is not in use, and
sends the events that stopped workers left in the others.
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
from .session import OutboxTiming

if TYPE_CHECKING:
    from loops_async._client import AsyncLoopsClient

_logger = logging.getLogger("loops_async")

# Short, because a worker can open another file instead.
_TIMING: Final = OutboxTiming(lock_timeout=0.1)


@asynccontextmanager
async def per_worker(
    path: Path,
    client: "AsyncLoopsClient",
    *,
    grace: float,
    scan_interval: float = 30.0,
    orphan_timeout: float = 300.0,
    max_files: int = 1000,
) -> AsyncIterator[Outbox]:
    """Open the first file of a family that is not in use.

    While the outbox is open, the events in files without an owner are sent, too.

    Args:
        path: The path of the first file of the family.
        client: The client that sends the events.
        grace: Seconds to continue sending when the outbox closes.
        scan_interval: Seconds between two searches for files without an owner.
        orphan_timeout: The longest time in seconds to send the events of one such file,
            so that a file that cannot be sent does not delay the others.
        max_files: The highest number of files. If all of them are in use, the file
            system probably does not support locks.

    Raises:
        JournalError: If the file is damaged or cannot be written, or if too
            many files are in use.
    """
    own, outbox = await _open_first_free(path, client, max_files)
    recovery = asyncio.create_task(
        _recover_orphans(path, own, client, scan_interval, orphan_timeout),
        name=f"outboxes beside {own}",
    )
    try:
        yield outbox
    finally:
        recovery.cancel()
        try:
            await outbox.aclose(grace)
        finally:
            await asyncio.wait([recovery])


async def _open_first_free(
    path: Path, client: "AsyncLoopsClient", max_files: int
) -> tuple[Path, Outbox]:
    for number in range(max_files):
        file = path
        if number:
            file = path.with_name(f"{path.stem}.{number}{path.suffix}")
        outbox = Outbox(file, client, _timing=_TIMING)
        try:
            return file, await outbox.__aenter__()
        except JournalError as error:
            if not error.in_use:
                raise
    msg = (
        f"{path} and {max_files - 1} more files are all in use: check that the file "
        "system supports locks"
    )
    raise JournalError(msg)


async def _recover_orphans(
    path: Path,
    own: Path,
    client: "AsyncLoopsClient",
    scan_interval: float,
    orphan_timeout: float,
) -> None:
    """Send the events in files without an owner, at each scan."""
    reported: set[Path] = set()
    while True:
        await asyncio.sleep(scan_interval)
        for file in _existing_files(path):
            if file == own:
                continue
            try:
                await _send_pending(file, client, orphan_timeout)
            except LoopsError as error:
                in_use = isinstance(error, JournalError) and error.in_use
                if not in_use and file not in reported:
                    reported.add(file)
                    text = "cannot send the events that a worker left: %s"
                    _logger.warning(text, error)


def _existing_files(path: Path) -> list[Path]:
    """Return the files of the family that exist."""
    name = re.compile(rf"{re.escape(path.stem)}(\.\d+)?{re.escape(path.suffix)}")
    return sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name))


async def _send_pending(file: Path, client: "AsyncLoopsClient", timeout: float) -> None:
    outbox = await Outbox(file, client, _timing=_TIMING).__aenter__()
    try:
        if pending := outbox.stats().pending:
            text = "sending the %d events that a worker left in %s"
            _logger.warning(text, pending, file)
            await outbox.flush(timeout)
    finally:
        await outbox.aclose(0.0)
