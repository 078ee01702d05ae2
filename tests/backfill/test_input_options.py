"""InputOptions: which settings are accepted, and how they are stored."""

from typing import Any

import pytest

from loops_async import ConfigurationError, InputOptions


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"event_name": "a:b"}, "event_name: must not contain ':'"),
        ({"event_name": ""}, "event_name: must not be empty"),
        ({"format": "xml"}, "format must be csv or jsonl, not 'xml'"),
        ({"types": {"a": "int"}}, "types: a must be one of string, number, boolean,"),
        ({"types": {"": "number"}}, "types: '' is not a property"),
        (
            {"types": {"mailing_lists.a": "number"}},
            "'mailing_lists.a' is not a property",
        ),
        ({"types": {"eventProperties.": "number"}}, "is not a property"),
        ({"mapping": {"e.mail": "A"}}, "mapping: 'e.mail' is not a field; known are"),
        ({"mapping": {"": "A"}}, "mapping: '' is not a field"),
        ({"mapping": {"email.x": "A"}}, "mapping: 'email.x' is not a field"),
        (
            {"mapping": {"mailing_lists": "A"}},
            "mapping: 'mailing_lists' is not a field",
        ),
        ({"mapping": {"email": " "}}, "mapping: email needs the heading of a column"),
        (
            {"mapping": {"user_id": "A", "userId": "B"}},
            "mapping: user_id is mapped twice",
        ),
        (
            {"mapping": {"contact_properties.first_name": "A"}},
            "mapping: contact_properties.first_name: is spelled firstName in Loops",
        ),
        ({"ignore": "PLZ"}, "ignore: must be a list of headings, each a string"),
        ({"ignore": 5}, "ignore: must be a list of headings"),
        ({"ignore": ["PLZ", None]}, "ignore: must be a list of headings"),
        (
            {"ignore": ["PLZ", " Mail"], "mapping": {"email": "Mail "}},
            "ignore: 'Mail' is also mapped, to email",
        ),
    ],
)
def test_an_invalid_setting_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        InputOptions(**options)
    assert problem in str(caught.value)


def test_options_do_not_change_with_the_dict_they_were_made_of() -> None:
    mapping = {"email": "Mail"}
    options = InputOptions(mapping=mapping)
    mapping.clear()
    assert options.mapping == {"email": "Mail"}


def test_headings_to_ignore_are_stripped_and_sorted() -> None:
    assert InputOptions(ignore={" b", "a", "b", ""}).ignore == ("", "a", "b")
    assert InputOptions(ignore=["b", "a"]) == InputOptions(ignore=("a", "b"))
