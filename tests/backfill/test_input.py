"""The input of a backfill: what a file says, and what is wrong with it."""

import csv
import gzip
import hashlib
import io
import json
import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loops_async import (
    ConfigurationError,
    Event,
    _json,
    event_from_record,
    event_to_record,
)
from loops_async._backfill.input import (
    InputOptions,
    Item,
    fingerprint,
    json_lines,
    read,
)

Write = Callable[..., Path]

HEAD = "email,event_name\n"
ADA = '{"email":"ada@example.com","event_name":"signup"}'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes, name: str = "events.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def items(path: Path, **reading: Any) -> list[Item]:
    return list(read(path, InputOptions(**reading)))


def one(path: Path, **reading: Any) -> Item:
    (item,) = items(path, **reading)
    return item


def event(item: Item) -> dict[str, Any]:
    assert item.event is not None, item.problems
    record = event_to_record(item.event)
    assert item.key == (None if record["idempotency_key"] == "unkeyed" else item.key)
    del record["idempotency_key"]
    return record


def problems(item: Item) -> str:
    assert item.event is None
    return "; ".join(item.problems)


def refused(path: Path, **reading: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        items(path, **reading)
    assert str(path) in str(caught.value)
    return str(caught.value)


# The settings


@pytest.mark.parametrize(
    ("reading", "says"),
    [
        ({"event_name": "a:b"}, "event_name: must not contain ':'"),
        ({"event_name": ""}, "event_name: must not be empty"),
        ({"format": "xml"}, "format must be csv or jsonl, not 'xml'"),
        ({"types": {"a": "int"}}, "types: a must be one of string, number, boolean,"),
        ({"types": {"": "number"}}, "types: '' is no property"),
        ({"types": {"mailing_lists.a": "number"}}, "'mailing_lists.a' is no property"),
        ({"types": {"eventProperties.": "number"}}, "is no property"),
        ({"mapping": {"e.mail": "A"}}, "mapping: 'e.mail' is no field; known are"),
        ({"mapping": {"": "A"}}, "mapping: '' is no field"),
        ({"mapping": {"email.x": "A"}}, "mapping: 'email.x' is no field"),
        ({"mapping": {"mailing_lists": "A"}}, "mapping: 'mailing_lists' is no field"),
        ({"mapping": {"email": " "}}, "mapping: email needs the heading of a column"),
        ({"mapping": {"user_id": "A", "userId": "B"}}, "mapping: user_id is given tw"),
        (
            {"mapping": {"contact_properties.first_name": "A"}},
            "mapping: contact_properties.first_name: is spelled firstName in Loops",
        ),
        ({"ignore": "PLZ"}, "ignore: must be a list of headings, each a string"),
        ({"ignore": 5}, "ignore: must be a list of headings"),
        ({"ignore": ["PLZ", None]}, "ignore: must be a list of headings"),
        (
            {"ignore": ["PLZ", " Mail"], "mapping": {"email": "Mail "}},
            "ignore: 'Mail' is mapped, to email",
        ),
    ],
)
def test_a_reading_that_cannot_be_is_refused(
    reading: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        InputOptions(**reading)
    assert says in str(caught.value)


def test_a_reading_does_not_change_with_what_it_was_made_of() -> None:
    mapping = {"email": "Mail"}
    reading = InputOptions(mapping=mapping)
    mapping.clear()
    assert reading.mapping == {"email": "Mail"}


def test_headings_to_ignore_are_stripped_and_sorted() -> None:
    assert InputOptions(ignore={" b", "a", "b", ""}).ignore == ("", "a", "b")
    assert InputOptions(ignore=["b", "a"]) == InputOptions(ignore=("a", "b"))


# Files


@pytest.mark.parametrize(
    "name",
    [
        "a.csv",
        "A.CSV",
        "a.csv.gz",
        "a.tsv",
        "a.jsonl",
        "a.ndjson",
        "a.json",
        "a.Json.gz",
    ],
)
def test_the_name_tells_the_format(write: Write, name: str) -> None:
    content = f"{HEAD}a@b.c,x\n" if "sv" in name.lower() else ADA
    assert one(write(content, name)).event


def test_the_format_may_be_told(write: Write) -> None:
    assert one(write(ADA, "a.csv"), format="jsonl").event
    assert "give the format" in refused(write(ADA, "a.txt"))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.csv")
    with pytest.raises(ConfigurationError, match="No such file"):
        fingerprint(tmp_path / "none.csv")
    (tmp_path / "dir.csv").mkdir()
    assert "s a directory" in refused(tmp_path / "dir.csv")


@pytest.mark.parametrize(
    "content", [b"", b"\n \r\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)]
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_an_empty_file_is_refused(write: Write, name: str, content: bytes) -> None:
    assert "there is nothing in it" in refused(write(content, name))


def test_a_fingerprint_is_of_the_bytes(write: Write) -> None:
    content = gzip.compress(b"abc" * 1000)
    assert fingerprint(write(content)) == hashlib.sha256(content).hexdigest()


def test_a_fingerprint_that_is_to_stop_is_empty(write: Write) -> None:
    path = write(b"x" * 3_000_000)
    answers = [False, False, True]
    assert fingerprint(path, lambda: answers.pop(0)) == ""
    assert answers == []
    assert fingerprint(write(b"", "none.csv"), lambda: True) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_path_that_is_not_utf_8_is_told_escaped(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.csv")
    told = f"{tmp_path}/caf\\xe9.csv"
    for look in (lambda: items(path), lambda: fingerprint(path)):
        with pytest.raises(ConfigurationError) as caught:
            look()
        assert str(caught.value) == f"{told}: cannot be read: No such file or directory"
    path.write_text(HEAD + "a@b.c,x\na@b.c\n")
    assert [item.file for item in items(path)] == [told, told]
    assert fingerprint(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text("Plan")
    with pytest.raises(ConfigurationError) as caught:
        items(path)
    assert str(caught.value).startswith(f"{told}, line 1: unknown headings")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("last", [True, False])
def test_encodings_line_ends_and_gzip(
    write: Write, zipped: bool, end: str, encoding: str, last: bool
) -> None:
    text = "email,event_name,contactProperties.name\nada@example.com,signup,Zoë 😀"
    content = (text + "\n" * last).replace("\n", end).encode(encoding)
    item = one(write(gzip.compress(content) if zipped else content))
    assert event(item)["contact_properties"] == {"name": "Zoë 😀"}
    assert item.line == 2


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_big_endian_utf_16(write: Write, name: str) -> None:
    text = f"{HEAD}ä@b.c,x\n" if name == "a.csv" else ADA
    assert one(write(b"\xfe\xff" + text.encode("utf-16-be"), name)).event


def test_what_cannot_be_decoded_is_a_problem_of_its_row(write: Write) -> None:
    path = write(HEAD.encode() + b'a@b.c,x\n\xc3\xa4,x\xe9\nb@b.c,"x\n\xff"\nc@b.c,x')
    first, bad, quoted, last = items(path)
    assert first.event
    assert last.event
    assert last.line == 6
    assert (
        problems(bad) == "line 3, character 4: not valid UTF-8, save the file as UTF-8"
    )
    assert bad.record == "ä,x\\xe9"
    assert (
        problems(quoted)
        == "line 5, character 1: not valid UTF-8, save the file as UTF-8"
    )
    bad, good = items(write(b'{"email":"\xe9"}\n' + ADA.encode(), "a.jsonl"))
    assert good.event
    assert (
        problems(bad) == "line 1, character 11: not valid UTF-8, save the file as UTF-8"
    )


def test_broken_utf_16_is_a_problem_of_its_row(write: Write) -> None:
    text = f"{HEAD}a@b.c,\ud800\nb@b.c,x\nc@b.c,x"
    bad, good, half = items(
        write(
            "\ufeff".encode("utf-16-le")
            + text.encode("utf-16-le", "surrogatepass")
            + b"y"
        )
    )
    assert (
        problems(bad) == "line 2, character 7: not valid UTF-16, save the file as UTF-8"
    )
    assert good.event
    assert (
        problems(half)
        == "line 4, character 8: not valid UTF-16, save the file as UTF-8"
    )


def test_utf_16_of_more_than_one_chunk(write: Write) -> None:
    rows = "".join(f"a{n}@b.c,x\n" for n in range(9_000))
    found = items(write((HEAD + rows).encode("utf-16")))
    assert [item.line for item in found] == list(range(2, 9_002))
    assert all(item.event for item in found)


def test_what_precedes_the_damage_in_a_gzip_is_read(write: Write) -> None:
    rows = "".join(
        f"{hashlib.sha256(b'%d' % n).hexdigest()}@b.c,x\n" for n in range(5000)
    )
    content = gzip.compress((HEAD + rows).encode())
    path = write(content[: len(content) // 2], "a.csv.gz")
    found = []
    with pytest.raises(ConfigurationError, match=r"a\.csv\.gz: cannot be read after l"):
        found.extend(_collect(read(path, InputOptions()), found))
    assert len(found) > 1000
    assert all(item.event for item in found)
    path.write_bytes(content[:-8] + b"12345678")
    assert "CRC" in refused(path)
    path.write_bytes(content[:20] + b"\xff" * 50 + content[70:])
    assert "cannot be read: Error -3" in refused(path)


def _collect(source: Iterator[Item], into: list[Item]) -> list[Item]:
    for item in source:
        into.append(item)  # noqa: PERF402 - what came before it raised counts
    return []


def test_memory_is_bounded_whatever_the_line(write: Write) -> None:
    long = b"x" * 12_000_000
    content = HEAD.encode() + long + b"\nb@b.c,x\n" + b'"' + long
    path = write(gzip.compress(content, 1))
    del long, content
    tracemalloc.start()
    try:
        first, good, last = items(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000
    assert problems(first) == "longer than 1,000,000 bytes"
    assert isinstance(first.record, str)
    assert len(first.record) < 2000
    assert good.event
    assert good.line == 3
    assert problems(last) == "longer than 1,000,000 bytes"
    assert last.line == 4


def test_a_long_line_of_json_is_a_problem_of_its_row(write: Write) -> None:
    bad, good = items(write('{"x": "' + "x" * 2_500_000 + f'"}}\n{ADA}', "a.jsonl"))
    assert problems(bad) == "longer than 1,000,000 bytes"
    assert good.event
    assert good.line == 2


# Headings


def test_every_field_in_both_spellings(write: Write) -> None:
    snake = (
        "event_name,email,user_id,idempotency_key,event_properties.a,"
        "contact_properties.b,mailing_lists.l,mailing_lists.m"
    )
    camel = (
        " eventName ,email,userId,idempotencyKey,eventProperties.a,"
        "contactProperties.b,mailingLists.l,mailingLists.m"
    )
    row = "signup,ada@example.com,u1,k1,01234,x,TRUE,false"
    expected = {
        "event_name": "signup",
        "email": "ada@example.com",
        "user_id": "u1",
        "event_properties": {"a": "01234"},
        "contact_properties": {"b": "x"},
        "mailing_lists": {"l": True, "m": False},
    }
    for head in (snake, camel):
        item = one(write(f"{head}\n{row}\n"))
        assert item.key == "k1"
        assert event(item) == expected
        assert item.record == {**expected, "idempotency_key": "k1"}


def test_an_empty_cell_is_absent(write: Write) -> None:
    head = "email,user_id,event_name,event_properties.a,mailing_lists.l,idempotency_key"
    item = one(write(f"{head}\n,u1,,,,\n"), event_name="signup")
    assert event(item) == {"event_name": "signup", "user_id": "u1"}
    assert item.record == {"event_name": "signup", "user_id": "u1"}


def test_a_name_in_the_row_beats_that_for_all(write: Write) -> None:
    found = items(write(f"{HEAD}a@b.c,own\na@b.c,\n"), event_name="all")
    assert [event(item)["event_name"] for item in found] == ["own", "all"]


def test_no_rows_are_no_items(write: Write) -> None:
    assert items(write(HEAD)) == []


def test_blank_lines_are_skipped(write: Write) -> None:
    found = items(write("\n\r\nemail,event_name\n\n \na@b.c,x\n\r\nb@b.c,x\n\n"))
    assert [item.line for item in found] == [6, 8]


def test_columns_may_have_other_headings(write: Write) -> None:
    mapping = {
        "email": "Mail",
        "eventName": "What",
        "amount": "Total",
        "contactProperties.plan": "Total",
        "mailing_lists.l": "News",
    }
    path = write("Mail,What, Total ,News\na@b.c,x,12,true\n")
    item = one(path, mapping=mapping, types={"event_properties.amount": "number"})
    assert event(item) == {
        "event_name": "x",
        "email": "a@b.c",
        "event_properties": {"amount": 12},
        "contact_properties": {"plan": "12"},
        "mailing_lists": {"l": True},
    }


def test_a_mapped_column_means_what_the_mapping_says_only(write: Write) -> None:
    item = one(write(HEAD + "a@b.c,x\n"), mapping={"user_id": "email"})
    assert event(item) == {"event_name": "x", "user_id": "a@b.c"}


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (
            "e-mail,Event Properties.x,Plan,,event_name.x",
            (
                "unknown headings: 'e-mail' (did you mean email?), "
                "'Event Properties.x' (did you mean event_properties.x?), "
                "'Plan', an empty one, 'event_name.x'; known are event_name, email, "
                "user_id, idempotency_key, event_properties.NAME, "
                "contact_properties.NAME and mailing_lists.ID; "
                'give others a meaning, such as --map "email=e-mail", '
                'or leave them out, such as --ignore "e-mail"'
            ),
        ),
        ("Email", "'Email' (did you mean email?)"),
        ("usr_id", "'usr_id' (did you mean user_id?)"),
        (
            ",Plan",
            (
                'such as --map "event_properties.Plan=Plan", '
                'or leave them out, such as --ignore ""'
            ),
        ),
        ("eventProperties", "unknown headings: 'eventProperties';"),
        ("event_properties.", "unknown headings: 'event_properties.';"),
        ("email.", "unknown headings: 'email.' (did you mean email?);"),
        (",", 'mailing_lists.ID; leave them out, such as --ignore ""'),
        (",".join(f"q{n}" for n in range(50)), "'q19', 30 more;"),
        ("email,event_name, email", "more than one column for 'email'"),
        ("user_id,userId", "more than one column for 'user_id'"),
        ("email,user_id", "no column for event_name"),
        ("event_name", "no column for email or user_id"),
        ('"email', "no heading: the quote that begins on line 1 is never closed"),
        ("email\0", "no heading: a NUL"),
        ("contact_properties.first_name,email,event_name", "is spelled firstName"),
        ("mailing_lists. x,email,event_name", "must not begin or end with white"),
        ("email,event_name", "types: no column for the property amount"),
        (
            "email,event_name,contact_properties.amount",
            "types: no column for the property event_properties.plan",
        ),
    ],
)
def test_a_heading_that_cannot_be_is_refused(
    write: Write, head: str, says: str
) -> None:
    types = {"amount": "number", "event_properties.plan": "string"}
    assert says in refused(write(f"{head}\na,b\n"), types=types)


def test_a_heading_that_cannot_be_decoded_is_refused(write: Write) -> None:
    says = refused(write(b"email\xe9\n"))
    assert "line 1, character 6: not valid UTF-8, save the file as UTF-8" in says


def test_mapped_columns_must_be_there_and_not_be_others(write: Write) -> None:
    path = write("email,Mail,event_name\na@b.c,a@b.c,x\n")
    says = refused(path, mapping={"email": "Email", "user_id": "Id"})
    assert "mapping: no column has the heading 'Email', 'Id'" in says
    assert "more than one column for 'email'" in refused(
        path, mapping={"email": "Mail"}
    )


def test_ignored_columns_are_left_out(write: Write) -> None:
    path = write("PLZ,email,,event_name, PLZ ,user_id,\n1,a@b.c,2,x,3,\x07,4\nb@b.c\n")
    item, short = items(path, ignore=["PLZ", "", "user_id"])
    assert event(item) == {"event_name": "x", "email": "a@b.c"}
    assert item.record == event(item)
    assert problems(short) == "1 cell, but the heading has 7"
    bad, _ = items(path, ignore=["PLZ", "", "event_name"], event_name="y")
    assert bad.record == {"event_name": "y", "email": "a@b.c", "user_id": "\x07"}


def test_an_ignored_column_leaves_its_field_to_another(write: Write) -> None:
    path = write("email,Mail,event_name\n1,a@b.c,x\n")
    item = one(path, mapping={"email": "Mail"}, ignore=["email"])
    assert event(item) == {"event_name": "x", "email": "a@b.c"}


def test_ignored_columns_must_be_there_and_not_be_needed(write: Write) -> None:
    path = write(HEAD + "a@b.c,x\n")
    says = refused(path, ignore=["PLZ", "", "email"])
    assert "line 1: ignore: no column has the heading '', 'PLZ'" in says
    assert "no column for email or user_id" in refused(path, ignore=["email"])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_heading_tells_the_delimiter(write: Write, delimiter: str) -> None:
    rows = [
        ["email", "event_properties.a;b", "event_name", "Total, net"],
        ["a@b.c", "1,2;3\t4", "x", ""],
        ["a@b.c", "", "x", ""],
    ]
    if delimiter == ";":
        rows[0][1] = "event_properties.ab"
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    full, empty = items(write(file.getvalue()), mapping={"net": "Total, net"})
    assert list(event(full)["event_properties"].values()) == ["1,2;3\t4"]
    assert event(empty) == {"event_name": "x", "email": "a@b.c"}


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ("Kunde;Betrag", "'Kunde', 'Betrag';"),
        ("Kunde\tBetrag", "'Kunde', 'Betrag';"),
        ("Kunde\tBetrag; netto", "'Kunde', 'Betrag; netto';"),
        ("Kunde\tA;B;C", "'Kunde\\tA', 'B', 'C';"),
        ('"Name, Vorname";Betrag', "'Name, Vorname', 'Betrag';"),
        ('Kunde;"A, B\nC"', "'Kunde', 'A, B\\nC';"),
        ("Kunde,A;B;C", "'Kunde', 'A;B;C';"),
        ("Kunde", "'Kunde';"),
    ],
)
def test_headings_without_a_meaning_tell_the_delimiter_too(
    write: Write, head: str, says: str
) -> None:
    assert f"unknown headings: {says}" in refused(write(f"{head}\n"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_spreadsheets_may_separate_by_other_than_commas(
    write: Write, delimiter: str, encoding: str
) -> None:
    text = (
        "Mail;Notiz;PLZ;\r\n"
        'ä@b.c;"1,5; ""ja""\r\nund\tmehr";1;\r\n'
        "b@b.c;kurz, knapp\r\n"
        "c@b.c;2,5;3;\r\n"
    ).replace(";", delimiter)
    flags: dict[str, Any] = {
        "event_name": "x",
        "mapping": {"email": "Mail", "note": "Notiz"},
        "ignore": ["PLZ", ""],
    }
    first, short, last = items(write(text.encode(encoding)), **flags)
    inside = f'1,5{delimiter} "ja"\r\nund\tmehr'
    assert event(first)["event_properties"] == {"note": inside}
    assert (short.line, last.line) == (4, 5)
    assert problems(short) == "2 cells, but the heading has 4"
    assert short.record == f"b@b.c{delimiter}kurz, knapp"
    assert event(last)["event_properties"] == {"note": "2,5"}


def test_the_order_of_columns_does_not_change_the_event(write: Write) -> None:
    head = "email,event_name,mailing_lists.m,mailing_lists.l,eventProperties.b"
    head += ",event_properties.a,contact_properties.d,contactProperties.c"
    row = "a@b.c,x,true,false,1,2,3,4"
    flags = {"types": {"a": "number"}}
    item = one(write(f"{head}\n{row}\n"), **flags)
    turned = [",".join(reversed(line.split(","))) for line in (head, row)]
    again = one(write("\n".join(turned)), **flags)
    assert json.dumps(event(item)) == json.dumps(event(again))
    assert list(event(item)["event_properties"].items()) == [("a", 2), ("b", "1")]
    assert list(event(item)["contact_properties"]) == ["c", "d"]
    assert list(event(item)["mailing_lists"]) == ["l", "m"]


# Rows of CSV


def typed(write: Write, kind: str, text: str) -> Item:
    path = write(f"{HEAD[:-1]},event_properties.a\na@b.c,x,{text}\n")
    return one(path, types={"a": kind})


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("string", "01234", "01234"),
        ("number", "42", 42),
        ("number", "-007", -7),
        ("number", "4.5", 4.5),
        ("number", "+.5e-1", 0.05),
        ("number", "5.", 5.0),
        ("number", "0e5", 0.0),
        ("number", "-0.000", 0.0),
        ("number", "4503599627370497.3", 4503599627370497.0),
        ("number", "9007199254740994.0", 9007199254740994.0),
        ("number", "1152921504606846976.0", 2.0**60),
        ("number", "1e300", 1e300),
        ("boolean", "True", True),
        ("boolean", "false", False),
        ("date", "2026-01-31", "2026-01-31"),
        ("date", "2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00.000Z"),
        ("date", "2026-01-31 12:00Z", "2026-01-31T12:00:00.000Z"),
    ],
)
def test_cells_are_read_as_told(
    write: Write, kind: str, text: str, value: object
) -> None:
    item = typed(write, kind, text)
    (found,) = event(item)["event_properties"].values()
    assert (type(found), found) == (type(value), value)
    assert isinstance(item.record, dict)
    assert item.record["event_properties"] == {"a": value}
    json.dumps(item.record)


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("number", "abc", '"abc" is not a number'),
        ("number", "nan", '"nan" is not a number'),
        ("number", "inf", '"inf" is not a number'),
        ("number", "1_000", '"1_000" is not a number'),
        ("number", '"1,5"', '"1,5" is not a number'),
        ("number", " 1", '" 1" is not a number'),
        ("number", "٣", '"٣" is not a number'),
        ("number", "1e400", '"1e400" is out of range'),
        ("number", "9" * 5000, f'"{"9" * 58}… is out of range'),
        ("number", "9" * 20, "integers beyond 2**53 lose digits, send a string"),
        ("number", "9007199254740993.0", "numbers beyond 2**53 lose digits, send a s"),
        ("number", "-9007199254740993e0", "numbers beyond 2**53 lose digits"),
        ("number", "123456789012345678901e-1", "numbers beyond 2**53 lose digits"),
        ("number", "1e-400", '"1e-400" is out of range'),
        ("number", "-.001E-400", '"-.001E-400" is out of range'),
        ("boolean", "yes", '"yes" is not true or false'),
        ("date", "31.1.2026", '"31.1.2026" is not a date (ISO 8601: 2026-01-31T12:'),
        ("date", "2026-01-31T12:00:00", '"2026-01-31T12:00:00" has no time zone'),
    ],
)
def test_cells_that_are_not_what_was_told_are_problems(
    write: Write, kind: str, text: str, why: str
) -> None:
    assert problems(typed(write, kind, text)).startswith(f"event_properties.a: {why}")


def test_all_problems_of_a_row_at_once_and_a_record_to_mend(write: Write) -> None:
    head = (
        "email,user_id,event_name,event_properties.n,event_properties.d,"
        "event_properties.e,contact_properties.b,mailing_lists.l,idempotency_key"
    )
    types = {"n": "number", "d": "date", "e": "date", "contactProperties.b": "boolean"}
    path = write(f"{head}\nada@,u1,a:b,abc,2026-01-31,soon,TRUE,yes,k1\n,,,7,,,x,,\n")
    first, second = items(path, types=types)
    assert first.problems == (
        'event_properties.e: "soon" is not a date (ISO 8601: 2026-01-31T12:00:00Z)',
        'event_properties.n: "abc" is not a number',
        'mailing_lists.l: "yes" is not true or false',
        "event_name: must not contain ':'",
        "email: must be of the form name@domain, with one @ and no spaces",
    )
    assert first.key == "k1"
    assert first.record == {
        "event_name": "a:b",
        "email": "ada@",
        "user_id": "u1",
        "idempotency_key": "k1",
        "event_properties": {"n": "abc", "d": "2026-01-31", "e": "soon"},
        "contact_properties": {"b": True},
        "mailing_lists": {"l": "yes"},
    }
    assert second.problems == (
        'contact_properties.b: "x" is not true or false',
        "email: required unless user_id is given",
        "event_name: must be a string, not None",
    )
    assert second.record == {
        "event_properties": {"n": 7},
        "contact_properties": {"b": "x"},
    }


def test_a_row_of_another_width_is_a_problem(write: Write) -> None:
    short, long, good = items(write(f"{HEAD}a@b.c\na@b.c,x,y\na@b.c,x\n"))
    assert problems(short) == "1 cell, but the heading has 2"
    assert problems(long) == "3 cells, but the heading has 2"
    assert long.record == "a@b.c,x,y"
    assert good.event


def test_quoted_cells_may_have_anything_in_them(write: Write) -> None:
    text = 'She said "hi",\r\nthen; \rleft\n\n""'
    file = io.StringIO()
    heading = ["email", "event_name", "event_properties.a", "event_properties.b"]
    csv.writer(file).writerows([heading, ["a@b.c", "x", text, '"\n']])
    path = write(file.getvalue() + '"a@b.c",x,,')
    first, second = items(path)
    assert event(first)["event_properties"] == {"a": text, "b": '"\n'}
    assert first.line == 2
    assert second.event
    assert second.line == 7


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('5" pipe,x', "a quote out of place: a cell with quotes"),
        ('"a"b,x', "a quote out of place: "),
        ('a, "x"', "a quote out of place: "),
        ("a\0,x", "a NUL character"),
        ('"a\0",x', "a NUL character"),
        ("a\rb,x", "a carriage return"),
        ('"a"\r,x', "a quote out of place"),
        ('"a",b\rb', "not CSV: new-line character seen in unquoted field"),
        (f'"{"a" * 200_000}",x', "a cell is longer than 131,072 characters"),
    ],
)
def test_broken_syntax_is_a_problem_of_its_row_alone(
    write: Write, row: str, says: str
) -> None:
    bad, good = items(write(f"{HEAD}{row}\na@b.c,x\n"))
    assert says in problems(bad)
    assert bad.line == 2
    assert bad.record == row
    assert good.event
    assert good.line == 3


def test_rows_behind_an_open_quote_are_not_taken_for_rows(write: Write) -> None:
    rows = '1,"foo\nb@b.c,x\n3,"baz"\nc@b.c,x\nd@b.c,"a\n""b""\n","never\nclosed\n'
    bad, good, last = items(write(HEAD + rows))
    assert "a quote out of place (lines 2 to 4)" in problems(bad)
    assert bad.record == '1,"foo\nb@b.c,x\n3,"baz"'
    assert good.event
    assert good.line == 5
    assert problems(last) == "the quote that begins on line 8 is never closed"
    assert last.line == 6


def test_a_record_of_too_many_lines_is_skipped_to_its_end(write: Write) -> None:
    inside = ("b@b.c,x" + "y" * 92 + "\n") * 11_000
    bad, good = items(write(f'{HEAD}a@b.c,"\n{inside}"\nc@b.c,x\n'))
    assert problems(bad) == "longer than 1,000,000 bytes (lines 2 to 11003)"
    assert good.event
    assert good.line == 11_004


# JSON Lines


def test_a_record_in_either_spelling(write: Write) -> None:
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
    path = write(f"{json.dumps(snake)}\n\n{json.dumps(camel)}\n", "a.jsonl")
    first, second = items(path)
    assert first.event == second.event == event_from_record(snake)
    assert first.record == second.record == snake
    assert (first.key, first.line, second.line) == ("k1", 1, 3)


def test_a_name_for_all_records_without(write: Write) -> None:
    path = write('{"email":"a@b.c"}\n{"email":"a@b.c","eventName":"own"}', "a.jsonl")
    assert [event(item)["event_name"] for item in items(path, event_name="all")] == [
        "all",
        "own",
    ]
    bad, _ = items(path)
    assert problems(bad) == "event_name: must be a string, not None"
    assert bad.record == {"email": "a@b.c"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", "record: must be an object, not list"),
        ("null", "record: must be an object, not None"),
        ('"text"', "record: must be an object, not str"),
        ('{"email": nope}', "not JSON: "),
        ('{"email": NaN}', "not JSON: "),
        ('{"email": "a@b.c", "event_properties": {"a": Infinity}}', "not JSON: "),
        ('{"email": 1e999}', "not JSON: "),
        ('{"email": "\0"}', "not JSON: "),
        ('{"email": "\\ud800"}', "not JSON: "),
        ('{"\\ud800": 1, "\\ud800": 2}', "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ('{"a":' * 300 + "1" + "}" * 300, "nested more than 50 deep"),
        ('{"a":' + "[" * 300 + "]" * 300 + "}", "nested more than 50 deep"),
    ],
)
@pytest.mark.parametrize("with_orjson", [True, False])
def test_a_line_that_is_no_record_is_a_problem(
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    says: str,
    with_orjson: bool,
) -> None:
    if not with_orjson:
        monkeypatch.setattr(json_lines, "loads", _json._strict_loads)
    bad, good = items(write(f"{line}\n{ADA}", "a.jsonl"))
    assert problems(bad).startswith(says)
    assert good.event
    f"{problems(bad)} {bad.record}".encode()  # as SQLite and terminals want it
    if not says.startswith("record: "):
        assert bad.record == line


def test_many_brackets_in_a_text_are_no_nesting(write: Write) -> None:
    line = ADA[:-1] + ',"event_properties":{"a":"%s"}}' % ("[" * 80)
    assert event(one(write(line, "a.jsonl")))["event_properties"] == {"a": "[" * 80}


def test_broken_json_is_told_with_its_position(write: Write) -> None:
    item = one(write('{"email": nope}', "a.jsonl"))
    assert "(character 11)" in problems(item)


@pytest.mark.parametrize("start", ["[\n", "{\n"])
def test_json_over_several_lines_is_refused_as_a_whole(
    write: Write, start: str
) -> None:
    assert "on a line of its own" in refused(write(f"\n{start}{ADA}\n", "a.json"))


def test_all_problems_of_a_record_at_once(write: Write) -> None:
    line = (
        '{"email":"ada@","Plan":1,"user_id":5,"eventName":"x","event_name":"y",'
        '"eventProperties":{"n":"abc","s":3,"ok":"7"},"idempotencyKey":9}'
    )
    item = one(
        write(line, "a.jsonl"), types={"n": "number", "s": "string", "ok": "number"}
    )
    assert item.problems == (
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
    assert item.key is None
    assert isinstance(item.record, dict)
    assert item.record["event_properties"] == {"n": "abc", "s": 3, "ok": 7}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"email":"b@b.c",%s', "email: given twice"),
        ('{"event_properties":{"a":1,"a":2,"a":3},%s', "event_properties.a: given tw"),
        ('{"line":1,"error":"","error":"","record":{%s}', "error: given twice"),
    ],
)
def test_a_key_given_twice_is_a_problem(write: Write, line: str, says: str) -> None:
    line %= ADA[1:]
    item = one(write(line, "a.jsonl"))
    assert problems(item).startswith(says)
    assert item.record == line


def test_large_integers_are_not_rounded(write: Write) -> None:
    line = ADA[:-1] + ',"event_properties":{"a":%s}}'
    numbers = (
        "123456789012345678901234567890",
        "9007199254740993.0",
        "-12345678901234567890e1",
        "9007199254740994.0",
        "1e300",
        "9" * 5000,
    )
    found = items(write("\n".join(line % n for n in numbers), "a.jsonl"))
    *large, even, fine, huge = found
    for item in large:
        assert "lose digits" in problems(item)
        json.dumps(item.record)
    assert event(even)["event_properties"] == {"a": 9007199254740994.0}
    assert event(fine)["event_properties"] == {"a": 1e300}
    assert "not JSON" in problems(huge)


def test_types_of_json_values(write: Write) -> None:
    types = {"n": "number", "b": "boolean", "d": "date", "s": "string"}
    good = {"n": "1.5", "b": "TRUE", "d": "2026-01-31T12:00:00Z", "s": "1"}
    same = {"n": 1.5, "b": True, "d": "2026-01-31", "s": "1"}
    bad = {"n": True, "b": 1, "d": 5, "s": False}
    lines = [
        json.dumps({**json.loads(ADA), "contactProperties": values})
        for values in (good, same, bad, dict.fromkeys(types), 5)
    ]
    found = items(write("\n".join(lines), "a.jsonl"), types=types)
    assert event(found[0])["contact_properties"] == {
        "n": 1.5,
        "b": True,
        "d": "2026-01-31T12:00:00.000Z",
        "s": "1",
    }
    assert event(found[1])["contact_properties"] == same
    assert found[2].problems == (
        "contact_properties.n: true is not a number",
        "contact_properties.b: 1 is not a boolean",
        "contact_properties.d: 5 is not a date",
        "contact_properties.s: false is not a string",
    )
    assert event(found[3])["contact_properties"] == dict.fromkeys(types)
    assert problems(found[4]) == "contact_properties: must be a mapping, not int"


def test_keys_of_the_top_level_may_be_renamed(write: Write) -> None:
    mapping = {"email": "Mail", "amount": "Total", "eventProperties.plan": "Plan"}
    lines = [
        '{"Mail":"a@b.c","Total":5,"Plan":"pro","email":null}',
        '{"email":"a@b.c","event_properties":{"other":1},"Total":5}',
        '{"email":"a@b.c","Mail":"b@b.c","event_properties":{"amount":1},"Total":5}',
    ]
    path = write("\n".join(lines), "a.jsonl")
    first, second, twice = items(path, mapping=mapping, event_name="x")
    assert event(first) == {
        "event_name": "x",
        "email": "a@b.c",
        "event_properties": {"amount": 5, "plan": "pro"},
    }
    assert event(second)["event_properties"] == {"other": 1, "amount": 5}
    assert twice.problems[:2] == (
        "email: given twice, also as Mail",
        "event_properties.amount: given twice, also as Total",
    )


def test_ignored_keys_of_the_top_level_are_left_out(write: Write) -> None:
    lines = [
        '{"email":"a@b.c","PLZ":1,"userId":5}',
        '{"email":"a@b.c","PLZ":{"a":1,"a":2},"PLZ":3}',
        '{"email":"a@b.c","event_properties":{"PLZ":1,"PLZ":2}}',
        '{"email":"a@b.c","Ort":"x","PLZ":1}',
    ]
    path = write("\n".join(lines), "a.jsonl")
    plain, twice, inner, bad = items(path, event_name="x", ignore=["PLZ", "userId"])
    assert event(plain) == event(twice) == {"event_name": "x", "email": "a@b.c"}
    assert plain.record == twice.record == event(plain)
    assert problems(inner) == "event_properties.PLZ: given twice"
    assert problems(bad).startswith("Ort: unknown field")
    assert bad.record == {"event_name": "x", "email": "a@b.c", "Ort": "x"}


def test_swapped_names_are_swapped(write: Write) -> None:
    line = '{"email":"u1","user_id":"a@b.c","event_name":"x"}'
    mapping = {"email": "user_id", "user_id": "email"}
    item = one(write(line, "a.jsonl"), mapping=mapping)
    assert event(item) == {"event_name": "x", "email": "a@b.c", "user_id": "u1"}


def test_rejects_are_read_again_with_the_same_flags(write: Write) -> None:
    flags: dict[str, Any] = {
        "event_name": "all",
        "mapping": {"user_id": "email", "email": "Mail", "amount": "Total"},
        "types": {"amount": "number"},
        "ignore": ["user_id", "record"],
    }
    content = "email,Mail,Total,user_id,record\nu1,a@b.c,abc,u2,\n5\n"
    bad, unread = items(write(content), **flags)
    rejects = [
        {"line": bad.line, "error": "; ".join(bad.problems), "record": bad.record},
        {"file": "f", "line": 3, "error": "x", "record": unread.record},
    ]
    text = "\n".join(map(json.dumps, rejects))
    again, text_again = items(write(text, "a.rejects.jsonl"), **flags)
    assert again.problems == bad.problems
    assert again.record == bad.record
    assert problems(text_again) == "record: must be an object, not str"
    assert text_again.record == "5"
    mended = one(write(text.replace("abc", "42").split("\n")[0], "b.jsonl"), **flags)
    assert event(mended) == {
        "event_name": "all",
        "email": "a@b.c",
        "user_id": "u1",
        "event_properties": {"amount": 42},
    }


# Laws

_texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30
)
_names = st.sampled_from(["a", "b.c", "ä", 'q"', "x,y", "x;y", "two words"])
_ids = st.text("abc_-.", min_size=1, max_size=10)
_moments = st.datetimes(
    datetime(1, 1, 2),  # noqa: DTZ001 - as hypothesis wants it
    datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.just(UTC),
)
_events = st.builds(
    lambda name, ids, key, properties, contact, lists: Event(
        name,
        email=ids[0],
        user_id=ids[1],
        idempotency_key=key,
        event_properties=properties,
        contact_properties=contact,
        mailing_lists=lists,
    ),
    _ids,
    st.tuples(st.none() | _ids.map("{}@b.c".format), st.none() | _ids).filter(any),
    st.text("abc", min_size=1, max_size=10),
    st.fixed_dictionaries(
        {},
        optional={
            "n": st.integers(-(2**53), 2**53)
            | st.floats(allow_nan=False, allow_infinity=False),
            "d": st.dates() | _moments,
        },
    ),
    st.dictionaries(_names, _texts, max_size=3),
    st.dictionaries(_names, st.booleans(), max_size=3),
)
_few = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_TYPES = {"event_properties.n": "number", "eventProperties.d": "date"}


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for field, value in record.items():
        if isinstance(value, dict):
            flat.update({f"{field}.{name}": inner for name, inner in value.items()})
        else:
            flat[field] = value
    return flat


@_few
@given(
    events=st.lists(_events, min_size=1, max_size=5), delimiter=st.sampled_from(",;\t")
)
def test_events_written_as_csv_are_read_back(
    tmp_path: Path, events: list[Event], delimiter: str
) -> None:
    rows = [_flat(event_to_record(event)) for event in events]
    heading = ["email", "event_properties.n", "event_properties.d"]
    heading += sorted({name for row in rows for name in row}.difference(heading))
    file = io.StringIO()
    writer = csv.DictWriter(file, heading, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path = tmp_path / "a.csv"
    path.write_bytes(file.getvalue().encode())
    found = items(path, types=_TYPES)
    for event, item in zip(events, found, strict=True):
        assert item.event is not None, item.problems
        assert item.key == event.idempotency_key
        kept = {n: v for n, v in event.contact_properties.items() if v != ""}
        assert item.event == event.replace(
            contact_properties=kept, idempotency_key=event.idempotency_key
        )


@_few
@given(events=st.lists(_events, min_size=1, max_size=5))
def test_events_written_as_json_lines_are_read_back(
    tmp_path: Path, events: list[Event]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(event_to_record(e)) for e in events))
    found = items(path, types=_TYPES)
    assert [item.event for item in found] == events
    assert [event_from_record(item.record) for item in found] == events  # type: ignore[arg-type]


@settings(_few, max_examples=200)
@given(
    content=st.text('a",;\t\r\n\0é', max_size=40).map(str.encode)
    | st.binary(max_size=20),
    name=st.sampled_from(["a.csv", "a.jsonl"]),
)
def test_nothing_crashes_the_reader_and_no_line_is_lost(
    tmp_path: Path, content: bytes, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(HEAD.encode() + content)
    lines = [item.line for item in items(path)]
    assert lines == sorted(set(lines))
    if b'"' not in content:
        spoken = (HEAD.encode() + content).split(b"\n")
        expected = [n for n, line in enumerate(spoken, 1) if line.strip(b" \r\n")]
        assert lines == (expected[1:] if name == "a.csv" else expected)
