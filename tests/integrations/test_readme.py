"""The README keeps its word: its Python runs, its commands are the real ones."""

import ast
import asyncio
import inspect
import re
from pathlib import Path

import pytest

from loops_async import AsyncLoopsClient
from loops_async.sandbox import Sandbox

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBERS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
ALL = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
BLOCKS = [block for block in ALL if not re.match(r"# \w+\.py$", block, re.MULTILINE)]


def test_the_python_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In one go, from top to bottom, against a sandbox in place of Loops.

    But for those that are files: test_recipes.py runs each as what it is.
    """
    assert len(BLOCKS) >= 7
    monkeypatch.chdir(tmp_path)
    (rows,) = re.findall(r"^```csv\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "signups.csv").write_text(rows)

    async def run_all() -> list[str]:
        async with Sandbox() as sandbox:
            monkeypatch.setenv("LOOPS_API_KEY", sandbox.api_key)
            monkeypatch.setenv("LOOPS_BASE_URL", sandbox.url)
            async with AsyncLoopsClient() as loops:
                names: dict[str, object] = {}
                for block in BLOCKS:
                    names["loops"] = loops
                    code = compile(
                        block, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
                    )
                    result = eval(code, names)
                    if inspect.isawaitable(result):
                        await result
            return [event.name for event in sandbox.events]

    sent = asyncio.run(run_all())
    assert sent == [*["planUpgraded"] * 2, *["signup"] * 20, *["signup"] * 2]


@pytest.mark.parametrize("folder", [".", "benchmarks"])
def test_every_picture_and_page_is_there(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    assert "![" in text
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / folder / link).is_file(), link


def test_the_check_command_runs_the_readmes_test_command() -> None:
    """`.ci/run` takes its test command out of the README, where it is one line."""
    commands = re.findall(r"^python3 -m venv .*pytest$", README, re.MULTILINE)
    assert len(commands) == 1
    assert "grep -E '^python3 -m venv .*pytest$' README.md" in (
        ROOT / ".ci" / "run"
    ).read_text(encoding="utf-8")


def test_every_number_is_one() -> None:
    """In the tables of numbers, no cell waits to be filled in."""
    table = README.partition("## Numbers")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| (.+) \|$", table + NUMBERS, re.MULTILINE)
    assert len(rows) >= 20
    for what, number in rows:
        assert re.match(r"[0-9.]+([ ,]|$)", number), what
