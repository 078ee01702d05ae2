"""The rows of JSON Lines: what each record becomes, and its problems."""

import json
from typing import Any

import pytest
from support.backfills import (
    Save,
    file_error,
    problems_of,
    read_all,
    read_one,
    record_of,
)

from loops_async import InputOptions, event_from_record
from loops_async._backfill.input import read

ADA = '{"email":"ada@example.com","event_name":"signup"}'


def test_a_record_may_be_in_either_spelling(save: Save) -> None:
    snake = {
        "event_name": "signup",
        "user_id": "u1",
        "event_properties": {"amount": 42, "url": "http://x"},
        "contact_properties": {"name": None},
        "mailing_lists": {"l": True},
        "idempotency_key": "k1",
    }
    camel = {
        "eventName": "signup",
        "userId": "u1",
        "eventProperties": {"amount": 42, "url": "http://x"},
        "contactProperties": {"name": None},
        "mailingLists": {"l": True},
        "idempotencyKey": "k1",
    }
    path = save(f"{json.dumps(snake)}\n\n{json.dumps(camel)}\n", "a.jsonl")
    first, second = read_all(path)
    assert first.event == second.event == event_from_record(snake)
    assert first.record == second.record == snake
    assert (first.key, first.line, second.line) == ("k1", 1, 3)


def test_a_record_without_an_event_name_gets_that_of_the_options(save: Save) -> None:
    path = save('{"email":"a@b.c"}\n{"email":"a@b.c","eventName":"own"}', "a.jsonl")
    found = read_all(path, event_name="all")
    assert [record_of(row)["event_name"] for row in found] == ["all", "own"]
    invalid, _ = read_all(path)
    assert problems_of(invalid) == "event_name: must be a string, not None"
    assert invalid.record == {"email": "a@b.c"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[1]", "record: must be an object, not list"),
        ("null", "record: must be an object, not None"),
        ('"text"', "record: must be an object, not str"),
        ('{"email": nope}', "not JSON: Expecting value (character 11)"),
        ('{"email": NaN}', "not JSON: NaN is not allowed"),
        (
            '{"email": "a@b.c", "event_properties": {"a": Infinity}}',
            "not JSON: Infinity is not allowed",
        ),
        ('{"email": 1e999}', "not JSON: 1e999 is out of range"),
        ('{"email": "\0"}', "not JSON: Invalid control character at (character"),
        ('{"email": "\\ud800"}', "not JSON: an escaped surrogate"),
        ('{"\\ud800": 1, "\\ud800": 2}', "not JSON: an escaped surrogate"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ('{"a":' * 300 + "1" + "}" * 300, "nested more than 50 deep"),
        ('{"a":' + "[" * 300 + "]" * 300 + "}", "nested more than 50 deep"),
    ],
)
def test_a_line_that_is_not_a_record_is_a_problem_of_its_row(
    save: Save, line: str, problem: str
) -> None:
    invalid, valid = read_all(save(f"{line}\n{ADA}", "a.jsonl"))
    assert problems_of(invalid).startswith(problem)
    assert valid.event
    # SQLite and terminals take text that UTF-8 can encode.
    f"{problems_of(invalid)} {invalid.record}".encode()
    if not problem.startswith("record: "):
        assert invalid.record == line


def test_a_line_that_is_too_long_is_a_problem_of_its_row(save: Save) -> None:
    path = save('{"x": "' + "x" * 250 + f'"}}\n{ADA}', "a.jsonl")
    invalid, valid = read(path, InputOptions(), max_record=100)
    assert problems_of(invalid) == "longer than 100 bytes"
    assert valid.event
    assert valid.line == 2


def test_brackets_in_a_text_do_not_count_as_nesting(save: Save) -> None:
    line = ADA[:-1] + ',"event_properties":{"a":"%s"}}' % ("[" * 80)
    row = read_one(save(line, "a.jsonl"))
    assert record_of(row)["event_properties"] == {"a": "[" * 80}


@pytest.mark.parametrize("start", ["[\n", "{\n"])
def test_json_over_several_lines_is_refused_as_a_whole(save: Save, start: str) -> None:
    assert "on a line of its own" in file_error(save(f"\n{start}{ADA}\n", "a.json"))


def test_all_problems_of_a_record_are_reported(save: Save) -> None:
    line = (
        '{"email":"ada@","Plan":1,"user_id":5,"eventName":"x","event_name":"y",'
        '"eventProperties":{"n":"abc","s":3,"ok":"7"},"idempotencyKey":9}'
    )
    types = {"n": "number", "s": "string", "ok": "number"}
    row = read_one(save(line, "a.jsonl"), types=types)
    assert row.problems == (
        'event_properties.n: "abc" is not a number',
        "event_properties.s: 3 is not a string",
        (
            "Plan: unknown field, expected event_name, email, user_id, "
            "event_properties, contact_properties, mailing_lists, idempotency_key"
        ),
        "event_name: given twice, as event_name in another spelling",
        "email: must be of the form name@domain, with one @ and no spaces",
        "user_id: must be a string, not int",
        "idempotency_key: must be a string, not int",
    )
    assert row.key is None
    assert isinstance(row.record, dict)
    assert row.record["event_properties"] == {"n": "abc", "s": 3, "ok": 7}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"email":"b@b.c",%s', "email: given twice"),
        ('{"event_properties":{"a":1,"a":2,"a":3},%s', "event_properties.a: given tw"),
        ('{"line":1,"error":"","error":"","record":{%s}', "error: given twice"),
    ],
)
def test_a_key_that_is_given_twice_is_a_problem(
    save: Save, line: str, problem: str
) -> None:
    line %= ADA[1:]
    row = read_one(save(line, "a.jsonl"))
    assert problems_of(row).startswith(problem)
    assert row.record == line


def test_a_number_that_loses_digits_is_a_problem(save: Save) -> None:
    line = ADA[:-1] + ',"event_properties":{"a":%s}}'
    numbers = (
        "123456789012345678901234567890",
        "9007199254740993.0",
        "-12345678901234567890e1",
        "9007199254740994.0",
        "1e300",
        "9" * 5000,
    )
    found = read_all(save("\n".join(line % n for n in numbers), "a.jsonl"))
    *inexact, even, large, huge = found
    for row in inexact:
        assert problems_of(row).startswith("event_properties.a: integers beyond 2**53")
        json.dumps(row.record)
    assert record_of(even)["event_properties"] == {"a": 9007199254740994.0}
    assert record_of(large)["event_properties"] == {"a": 1e300}
    assert problems_of(huge) == f"not JSON: {'9' * 20} is out of range"


def test_values_of_a_type_are_converted(save: Save) -> None:
    types = {"n": "number", "b": "boolean", "d": "date", "s": "string"}
    texts = {"n": "1.5", "b": "TRUE", "d": "2026-01-31T12:00:00Z", "s": "1"}
    values = {"n": 1.5, "b": True, "d": "2026-01-31", "s": "1"}
    wrong = {"n": True, "b": 1, "d": 5, "s": False}
    lines = [
        json.dumps({**json.loads(ADA), "contactProperties": properties})
        for properties in (texts, values, wrong, dict.fromkeys(types), 5)
    ]
    found = read_all(save("\n".join(lines), "a.jsonl"), types=types)
    assert record_of(found[0])["contact_properties"] == {
        "n": 1.5,
        "b": True,
        "d": "2026-01-31T12:00:00.000Z",
        "s": "1",
    }
    assert record_of(found[1])["contact_properties"] == values
    assert found[2].problems == (
        "contact_properties.n: true is not a number",
        "contact_properties.b: 1 is not a boolean",
        "contact_properties.d: 5 is not a date",
        "contact_properties.s: false is not a string",
    )
    assert record_of(found[3])["contact_properties"] == dict.fromkeys(types)
    assert problems_of(found[4]) == "contact_properties: must be a mapping, not int"


def test_top_level_keys_can_be_mapped(save: Save) -> None:
    mapping = {"email": "Mail", "amount": "Total", "eventProperties.plan": "Plan"}
    lines = [
        '{"Mail":"a@b.c","Total":5,"Plan":"pro","email":null}',
        '{"email":"a@b.c","event_properties":{"other":1},"Total":5}',
        '{"email":"a@b.c","Mail":"b@b.c","event_properties":{"amount":1},"Total":5}',
    ]
    path = save("\n".join(lines), "a.jsonl")
    first, second, repeated = read_all(path, mapping=mapping, event_name="x")
    assert record_of(first) == {
        "event_name": "x",
        "email": "a@b.c",
        "event_properties": {"amount": 5, "plan": "pro"},
    }
    assert record_of(second)["event_properties"] == {"other": 1, "amount": 5}
    assert repeated.problems[:2] == (
        "email: given twice, also as Mail",
        "event_properties.amount: given twice, also as Total",
    )


def test_ignored_top_level_keys_are_left_out(save: Save) -> None:
    lines = [
        '{"email":"a@b.c","PLZ":1,"userId":5}',
        '{"email":"a@b.c","PLZ":{"a":1,"a":2},"PLZ":3}',
        '{"email":"a@b.c","event_properties":{"PLZ":1,"PLZ":2}}',
        '{"email":"a@b.c","Ort":"x","PLZ":1}',
    ]
    path = save("\n".join(lines), "a.jsonl")
    plain, repeated, inner, unknown = read_all(
        path, event_name="x", ignore=["PLZ", "userId"]
    )
    record = {"event_name": "x", "email": "a@b.c"}
    assert record_of(plain) == record_of(repeated) == record
    assert plain.record == repeated.record == record
    assert problems_of(inner) == "event_properties.PLZ: given twice"
    assert problems_of(unknown).startswith("Ort: unknown field")
    assert unknown.record == {"event_name": "x", "email": "a@b.c", "Ort": "x"}


def test_a_mapping_can_exchange_two_fields(save: Save) -> None:
    line = '{"email":"u1","user_id":"a@b.c","event_name":"x"}'
    mapping = {"email": "user_id", "user_id": "email"}
    row = read_one(save(line, "a.jsonl"), mapping=mapping)
    assert record_of(row) == {"event_name": "x", "email": "a@b.c", "user_id": "u1"}


def test_rejects_are_read_with_the_options_of_their_input(save: Save) -> None:
    options: dict[str, Any] = {
        "event_name": "all",
        "mapping": {"user_id": "email", "email": "Mail", "amount": "Total"},
        "types": {"amount": "number"},
        "ignore": ["user_id", "record"],
    }
    content = "email,Mail,Total,user_id,record\nu1,a@b.c,abc,u2,\n5\n"
    invalid, unparsed = read_all(save(content), **options)
    error = "; ".join(invalid.problems)
    rejects = [
        {"line": invalid.line, "error": error, "record": invalid.record},
        {"file": "f", "line": 3, "error": "x", "record": unparsed.record},
    ]
    text = "\n".join(map(json.dumps, rejects))
    same, not_a_record = read_all(save(text, "a.rejects.jsonl"), **options)
    assert same.problems == invalid.problems
    assert same.record == invalid.record
    assert problems_of(not_a_record) == "record: must be an object, not str"
    assert not_a_record.record == "5"
    corrected = text.replace("abc", "42").split("\n")[0]
    assert record_of(read_one(save(corrected, "b.jsonl"), **options)) == {
        "event_name": "all",
        "email": "a@b.c",
        "user_id": "u1",
        "event_properties": {"amount": 42},
    }
