"""The rejects file: the invalid and rejected rows, to be corrected and sent."""

import json
import os
import tempfile
from pathlib import Path

import attrs

from .journal import BackfillJournal


@attrs.frozen(kw_only=True)
class RejectsFile:
    """The rejects file of a run.

    Attributes:
        path: The path of the file.
        with_file: Whether each record names its input file.
    """

    path: Path
    with_file: bool

    async def update(self, journal: BackfillJournal, number: int, count: int) -> bool:
        """Make the file match the journal.

        A file that matches already stays as it is, so that no correction made
        in the file is lost.

        Args:
            journal: The open journal.
            number: The number of the last pass.
            count: The number of invalid and rejected rows of that pass.

        Returns:
            Whether the file has rows.

        Raises:
            OSError: If the file cannot be written.
        """
        metadata = await journal.metadata()
        written = metadata.get("rejects")
        if metadata.get("complete") != number:
            return False  # the journal does not have all rows of the input
        if [number, count] == written:
            return True
        if count:
            await self._write(journal)
        elif written is not None:
            # Rows corrected in the input must not be sent from this file as well.
            self.path.unlink(missing_ok=True)
        await journal.set_metadata(rejects=[number, count] if count else None)
        return count > 0

    async def _write(self, journal: BackfillJournal) -> None:
        """Replace the file atomically by one that only its owner can read."""
        path = self.path.resolve()
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f"{path.name}.", delete=False
        ) as file:
            try:
                async for row in journal.rejects():
                    reject = attrs.asdict(row, recurse=False)
                    if not self.with_file:
                        del reject["file"]
                    file.write(json.dumps(reject, ensure_ascii=False) + "\n")
                file.flush()
                os.replace(file.name, path)  # noqa: PTH105 - takes milliseconds
            except BaseException:
                os.unlink(file.name)  # noqa: PTH108 - takes milliseconds
                raise
