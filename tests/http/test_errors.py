"""The error classes: their tree, their text, and copies and pickles of them."""

import copy
import pickle
import re
from collections.abc import Callable

import pytest

import loops_async
from loops_async import errors
from loops_async.errors import (
    APIError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidEventError,
    LoopsError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
    TransportError,
)

CLASSES = [getattr(errors, name) for name in errors.__all__]
EACH_CLASS = pytest.mark.parametrize("cls", CLASSES, ids=errors.__all__)
COPIERS: list[Callable[[LoopsError], LoopsError]] = [
    copy.copy,
    copy.deepcopy,
    *(
        lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ),
]


def complete(cls: type[LoopsError]) -> LoopsError:
    """Make an error whose attributes all differ from their defaults."""
    if issubclass(cls, APIError):
        error: LoopsError = cls(
            "Loops responded with 418: no",
            status=418,
            message="no",
            body=b"\xff{}",
            headers={"retry-after": "7"},
            retry_after=7.0,
            retryable=True,
            maybe_accepted=True,
        )
    elif issubclass(cls, InvalidEventError):
        error = cls(problems=["email: required", "user_id: must not be empty"])
    else:
        error = cls("some text", retryable=True, maybe_accepted=True)
    if isinstance(error, RateLimitError):
        error.limit, error.remaining = 10, 0
    error.idempotency_key = "k-1"
    error.attempts = 3
    return error


@EACH_CLASS
def test_every_attribute_survives_copies_and_pickles(cls: type[LoopsError]) -> None:
    error = complete(cls)
    for copier in COPIERS:
        copied = copier(error)
        assert type(copied) is cls
        assert copied.args == error.args
        assert vars(copied) == vars(error)
        assert str(copied) == str(error)


@EACH_CLASS
def test_every_class_can_be_made_without_arguments(cls: type[LoopsError]) -> None:
    error = cls()
    assert str(error) == ""
    assert (error.idempotency_key, error.attempts) == (None, 0)
    assert (error.retryable, error.maybe_accepted) == (False, False)
    assert str(pickle.loads(pickle.dumps(error))) == ""


@EACH_CLASS
def test_each_error_prints_one_line_with_attempts_and_maybe_accepted(
    cls: type[LoopsError],
) -> None:
    text = str(complete(cls))
    assert len(text.splitlines()) == 1
    assert "(after 3 attempts)" in text
    expected = cls is not InvalidEventError
    assert text.endswith("; the event may have been accepted") is expected


def test_the_text_does_not_mention_a_single_attempt() -> None:
    error = ServerError("Loops responded with 500")
    error.attempts = 1
    assert str(error) == "Loops responded with 500"


def test_the_text_of_an_invalid_event_lists_all_problems() -> None:
    error = InvalidEventError(problems=["a: b", "c: d"])
    assert str(error) == "a: b; c: d"
    assert error.problems == ("a: b", "c: d")
    assert str(InvalidEventError("text", problems=["a: b"])) == "text"


def test_a_timeout_error_does_not_use_its_text_as_errno() -> None:
    for cls in (DeadlineExceededError, RequestTimeoutError):
        error = cls("late")
        assert error.errno is None
        assert error.args == ("late",)


def test_the_builtin_base_classes_are_those_in_the_tree() -> None:
    assert issubclass(InvalidEventError, ValueError)
    assert issubclass(DeadlineExceededError, TimeoutError)
    assert issubclass(RequestTimeoutError, TimeoutError)
    timeouts = {cls for cls in CLASSES if issubclass(cls, TimeoutError)}
    assert timeouts == {DeadlineExceededError, RequestTimeoutError}
    invalid = {cls for cls in CLASSES if issubclass(cls, ValueError)}
    assert invalid == {InvalidEventError}
    assert not issubclass(ConnectionLostError, ConnectionError)


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^(    [ │├└─]*)(\w+Error)\b(.*)$", line)
        if found is None:
            continue
        indent, name, rest = found.groups()
        depth = (len(indent) - 4) // 4
        path = [*path[:depth], name]
        drawn[name] = path[-2] if depth else None
        assert ("also a ValueError" in rest) == (name == "InvalidEventError")
        timeout = name in ("DeadlineExceededError", "RequestTimeoutError")
        assert ("also a TimeoutError" in rest) == timeout
    actual = {
        cls.__name__: None if cls is LoopsError else cls.__bases__[0].__name__
        for cls in CLASSES
    }
    assert drawn == actual


def test_the_exported_names_are_complete_and_sorted() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert defined == set(errors.__all__)
    assert list(errors.__all__) == sorted(errors.__all__)
    assert all(getattr(loops_async, name) is vars(errors)[name] for name in defined)
    assert issubclass(TransportError, LoopsError)


@EACH_CLASS
def test_each_class_has_a_docstring(cls: type[LoopsError]) -> None:
    assert (vars(cls)["__doc__"] or "").strip()


def test_a_rate_limit_error_without_headers_has_no_counts() -> None:
    error = RateLimitError("slow down")
    assert (error.limit, error.remaining, error.retry_after) == (None, None, None)
    assert error.headers == {}
