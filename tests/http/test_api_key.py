"""The API key: its sources, its checks, and how it stays hidden."""

from typing import Any

import pytest

from loops_async import AsyncLoopsClient, ConfigurationError
from loops_async._http.api_key import (
    WrongType,
    checked_api_key,
    hide_api_key,
    key_source,
)

KEY = "sk-very-secret-0123456789"
URL = "https://loops.example/api"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the API key of the developer from the environment."""
    monkeypatch.delenv("LOOPS_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("api_key", "message"),
    [
        ("", "api_key is empty"),
        (" \n", "api_key is empty"),
        (f"{KEY} {KEY}", "api_key contains a space"),
        (f"{KEY}\r\nX-Evil: 1", "api_key contains a space"),
        (f"{KEY}é", "api_key contains a space, a control character or a non-ASCII"),
        (f"{KEY}\x00", "api_key contains a space, a control character"),
        (5, "api_key must be a string or a callable that returns one, not int"),
        (KEY.encode(), "api_key must be a string or a callable that returns one, not"),
        ([KEY], "api_key must be a string or a callable that returns one, not list"),
    ],
)
def test_an_invalid_api_key_is_rejected_and_not_shown(
    api_key: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        key_source(hide_api_key(api_key))
    assert str(caught.value).startswith(message)
    assert KEY not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_white_space_around_an_api_key_is_removed() -> None:
    assert checked_api_key(f" {KEY}\n") == KEY


def test_an_api_key_is_masked_in_every_repr() -> None:
    key = checked_api_key(KEY)
    assert repr(key) == "'***'"
    assert KEY not in repr({"headers": [key, (key,)]})
    assert f"{key}" == KEY  # the header of a request


@pytest.mark.parametrize("value", [[KEY], KEY.encode(), {"key": KEY}, 5])
def test_a_value_of_a_wrong_type_is_replaced_by_its_type(value: object) -> None:
    """The value may contain the API key, and its repr would show it."""
    assert hide_api_key(value) == WrongType(type(value).__name__)
    with pytest.raises(ConfigurationError, match=f"not {type(value).__name__}$"):
        checked_api_key(value)


def test_a_hidden_api_key_keeps_its_value() -> None:
    hidden = hide_api_key(KEY)
    assert hidden == KEY
    assert repr(hidden) == "'***'"
    assert hide_api_key(None) is None
    assert hide_api_key(print) is print


def frames_of_a_failed_construction() -> list[dict[str, Any]]:
    with pytest.raises(ConfigurationError) as caught:
        AsyncLoopsClient(KEY, base_url=URL, timeout=-1)
    return [
        dict(entry.locals) for entry in caught.traceback[1:]
    ]  # the first frame is this one


def test_no_local_variable_of_a_failed_construction_shows_the_api_key() -> None:
    """Crash reporters print the local variables of each frame."""
    frames = frames_of_a_failed_construction()
    assert len(frames) == 3
    for variables in frames:
        made = variables.pop("self", None)
        assert KEY not in repr(variables)
        assert made is None or KEY not in repr(vars(made))


def test_a_client_whose_construction_failed_has_a_repr() -> None:
    """Crash reporters call the repr."""
    (client,) = (
        variables["self"]
        for variables in frames_of_a_failed_construction()
        if isinstance(variables.get("self"), AsyncLoopsClient)
    )
    assert repr(client) == "<AsyncLoopsClient with invalid settings>"


def test_an_argument_takes_precedence_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPS_API_KEY", "from-env")
    assert key_source(KEY) == KEY
    assert key_source(None) == "from-env"


def test_a_missing_api_key_is_an_error_with_the_next_step() -> None:
    with pytest.raises(ConfigurationError, match="no API key: pass api_key"):
        key_source(None)


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_api_key_is_not_a_missing_api_key(
    monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    """An empty argument must not select the key of the environment."""
    monkeypatch.setenv("LOOPS_API_KEY", empty)
    with pytest.raises(ConfigurationError, match="api_key is empty"):
        key_source(None)
    monkeypatch.setenv("LOOPS_API_KEY", "from-env")
    with pytest.raises(ConfigurationError, match="api_key is empty"):
        key_source(empty)


def test_a_callable_api_key_is_not_called_at_construction() -> None:
    def fetch() -> str:
        pytest.fail("called")

    assert key_source(fetch) is fetch


def test_a_dry_run_needs_no_api_key() -> None:
    AsyncLoopsClient(dry_run=True)
