"""The code in the documentation: in README.md, and in the guides.

A guide is the docstring of a public module, class or function. Its code is in
fenced blocks, as in the README. A Python block whose first line is ``# name.py`` is
a file. The other Python blocks of a document run from top to bottom, with ``loops``
as an open client. A CSV block is the content of ``signups.csv``.
"""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = "README.md"
MODULES = (
    "loops_async",
    "loops_async.errors",
    "loops_async.fastapi",
    "loops_async.sandbox",
    "loops_async.taskiq",
    "loops_async.testing",
)


def documents() -> dict[str, str]:
    """Return the text of each document by its name."""
    texts = {README: (ROOT / README).read_text(encoding="utf-8")}
    for name, value in _documented():
        text = getattr(value, "__doc__", None)
        if isinstance(text, str):
            texts[name] = inspect.cleandoc(text)
    return texts


def _documented() -> Iterator[tuple[str, object]]:
    for name in MODULES:
        module = import_module(name)
        yield name, module
        for member in module.__all__:
            if name != "loops_async.errors":  # the root has the same classes
                yield f"{name}.{member}", getattr(module, member)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def snippets(text: str) -> list[str]:
    return [block for block in blocks(text, "python") if not _NAME.match(block)]


def files(text: str) -> dict[str, str]:
    """Return the content of each Python file by its name without ``.py``."""
    found = {}
    for block in blocks(text, "python"):
        name = _NAME.match(block)
        if name:
            found[name[1]] = block
    return found


_NAME = re.compile(r"# (\w+)\.py\n")
