"""The documentation is true: its code runs, and its commands and links exist."""

import ast
import asyncio
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.documents import README, ROOT, blocks, documents, snippets
from support.sandbox_process import sandbox_in_environment

from loops_async import AsyncLoopsClient
from loops_async.sandbox import Sandbox

DOCUMENTS = documents()
TEXT = DOCUMENTS[README]
NUMBERS = (ROOT / "benchmarks" / README).read_text(encoding="utf-8")
WITH_SNIPPETS = [name for name, text in DOCUMENTS.items() if snippets(text)]


def run_snippets(name: str, sandbox: Sandbox) -> None:
    """Run the snippets of a document from top to bottom in one event loop."""

    async def main() -> None:
        async with AsyncLoopsClient(sandbox.api_key, base_url=sandbox.url) as loops:
            names: dict[str, object] = {"__name__": "snippets"}
            for number, block in enumerate(snippets(DOCUMENTS[name])):
                names["loops"] = loops
                where = f"{name}, snippet {number}"
                code = compile(block, where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                result = eval(code, names)
                if inspect.isawaitable(result):
                    await result

    asyncio.run(main())


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox to which the environment points, and signups.csv beside the code."""
    monkeypatch.chdir(tmp_path)
    (rows,) = blocks(TEXT, "csv")
    (tmp_path / "signups.csv").write_text(rows, encoding="utf-8")
    with sandbox_in_environment(monkeypatch, rate_limit=10) as sandbox:
        yield sandbox


@pytest.mark.parametrize("name", WITH_SNIPPETS)
def test_the_snippets_of_a_document_run(name: str, sandbox: Sandbox) -> None:
    for rows in blocks(DOCUMENTS[name], "csv"):
        Path("signups.csv").write_text(rows, encoding="utf-8")
    run_snippets(name, sandbox)
    if name == README:
        sent = [event.name for event in sandbox.events]
        assert sent == ["planUpgraded", *["signup"] * 21]


def test_the_shell_commands_of_the_readme_run(sandbox: Sandbox) -> None:
    text = "".join(blocks(TEXT, "sh")).replace("\\\n", "")
    commands = re.findall(r"^\.venv/bin/loops-async (.*)$", text, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["send", "backfill"]
    for command in commands:
        arguments = shlex.split(command)
        if arguments[0] == "backfill":
            arguments.append("--yes")  # no terminal can confirm
        done = subprocess.run(
            [sys.executable, "-m", "loops_async", *arguments],
            env={**os.environ, "COLUMNS": "80"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    sandbox.assert_event("planUpgraded", email="ada@example.com", times=1)
    sandbox.assert_event("signup", email="ada@example.com", times=1)


def test_the_readme_has_at_most_280_lines() -> None:
    assert len(TEXT.splitlines()) <= 280


def test_every_guide_that_the_readme_names_exists() -> None:
    named = re.findall(r"help\((loops_[\w.]+)\)", TEXT)
    assert len(named) >= 6
    assert set(named) <= set(DOCUMENTS)


@pytest.mark.parametrize("name", [README, "loops_async.fastapi", "loops_async.taskiq"])
def test_a_guide_has_code(name: str) -> None:
    assert len(blocks(DOCUMENTS[name], "python")) >= 2


@pytest.mark.parametrize("folder", [".", "benchmarks"])
def test_every_picture_and_page_exists(folder: str) -> None:
    text = (ROOT / folder / README).read_text(encoding="utf-8")
    assert "![" in text
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / folder / link).is_file(), link


def test_the_check_command_runs_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"^python3 -m venv .*pytest$", TEXT, re.MULTILINE)
    assert len(commands) == 1
    assert "grep -E '^python3 -m venv .*pytest$' README.md" in (
        ROOT / ".ci" / "run"
    ).read_text(encoding="utf-8")


def test_every_cell_of_the_tables_of_numbers_is_a_number() -> None:
    table = TEXT.partition("## Numbers")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| (.+) \|$", table + NUMBERS, re.MULTILINE)
    assert len(rows) >= 20
    for label, number in rows:
        assert re.match(r"[0-9.]+([ ,]|$)", number), label
