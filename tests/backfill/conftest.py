"""Fixtures of the backfill's tests."""

from pathlib import Path

import pytest
from support.backfills import Save


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Return a function that writes a file and returns its path."""

    def save(content: str | bytes, name: str = "events.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return save
