"""The rows of CSV: headings, cells, syntax, and what each row becomes."""

import csv
import io
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

from loops_async import InputOptions
from loops_async._backfill.input import InputRow, read

HEAD = "email,event_name\n"
ADA = '{"email":"ada@example.com","event_name":"signup"}'


def test_every_field_is_read_in_both_spellings(save: Save) -> None:
    snake = (
        "event_name,email,user_id,idempotency_key,event_properties.a,"
        "contact_properties.b,mailing_lists.l,mailing_lists.m"
    )
    camel = (
        " eventName ,email,userId,idempotencyKey,eventProperties.a,"
        "contactProperties.b,mailingLists.l,mailingLists.m"
    )
    cells = "signup,ada@example.com,u1,k1,01234,x,TRUE,false"
    expected = {
        "event_name": "signup",
        "email": "ada@example.com",
        "user_id": "u1",
        "event_properties": {"a": "01234"},
        "contact_properties": {"b": "x"},
        "mailing_lists": {"l": True, "m": False},
    }
    for head in (snake, camel):
        row = read_one(save(f"{head}\n{cells}\n"))
        assert row.key == "k1"
        assert record_of(row) == expected
        assert row.record == {**expected, "idempotency_key": "k1"}


def test_an_empty_cell_leaves_its_field_out(save: Save) -> None:
    head = "email,user_id,event_name,event_properties.a,mailing_lists.l,idempotency_key"
    row = read_one(save(f"{head}\n,u1,,,,\n"), event_name="signup")
    assert record_of(row) == {"event_name": "signup", "user_id": "u1"}
    assert row.record == {"event_name": "signup", "user_id": "u1"}


def test_an_event_name_in_the_row_overrides_that_of_the_options(save: Save) -> None:
    found = read_all(save(f"{HEAD}a@b.c,own\na@b.c,\n"), event_name="all")
    assert [record_of(row)["event_name"] for row in found] == ["own", "all"]


def test_a_heading_alone_yields_no_rows(save: Save) -> None:
    assert read_all(save(HEAD)) == []


def test_blank_lines_are_skipped(save: Save) -> None:
    found = read_all(save("\n\r\nemail,event_name\n\n \na@b.c,x\n\r\nb@b.c,x\n\n"))
    assert [row.line for row in found] == [6, 8]


def test_columns_can_be_mapped(save: Save) -> None:
    mapping = {
        "email": "Mail",
        "eventName": "What",
        "amount": "Total",
        "contactProperties.plan": "Total",
        "mailing_lists.l": "News",
    }
    path = save("Mail,What, Total ,News\na@b.c,x,12,true\n")
    row = read_one(path, mapping=mapping, types={"event_properties.amount": "number"})
    assert record_of(row) == {
        "event_name": "x",
        "email": "a@b.c",
        "event_properties": {"amount": 12},
        "contact_properties": {"plan": "12"},
        "mailing_lists": {"l": True},
    }


def test_a_mapped_column_loses_the_meaning_of_its_heading(save: Save) -> None:
    row = read_one(save(HEAD + "a@b.c,x\n"), mapping={"user_id": "email"})
    assert record_of(row) == {"event_name": "x", "user_id": "a@b.c"}


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (
            "e-mail,Event Properties.x,Plan,,event_name.x",
            (
                "unknown headings: 'e-mail' (did you mean email?), "
                "'Event Properties.x' (did you mean event_properties.x?), "
                "'Plan', an empty heading, 'event_name.x'; known are event_name, "
                "email, user_id, idempotency_key, event_properties.NAME, "
                "contact_properties.NAME and mailing_lists.ID; "
                'map columns, such as --map "email=e-mail", '
                'or leave columns out, such as --ignore "e-mail"'
            ),
        ),
        ("Email", "'Email' (did you mean email?)"),
        ("usr_id", "'usr_id' (did you mean user_id?)"),
        (
            ",Plan",
            (
                'such as --map "event_properties.Plan=Plan", '
                'or leave columns out, such as --ignore ""'
            ),
        ),
        ("eventProperties", "unknown headings: 'eventProperties';"),
        ("event_properties.", "unknown headings: 'event_properties.';"),
        ("email.", "unknown headings: 'email.' (did you mean email?);"),
        (",", 'mailing_lists.ID; leave columns out, such as --ignore ""'),
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
def test_a_heading_that_cannot_be_used_is_refused(
    save: Save, head: str, problem: str
) -> None:
    types = {"amount": "number", "event_properties.plan": "string"}
    assert problem in file_error(save(f"{head}\na,b\n"), types=types)


def test_a_heading_that_is_not_utf_8_is_refused(save: Save) -> None:
    error = file_error(save(b"email\xe9\n"))
    assert "line 1, character 6: not valid UTF-8, save the file as UTF-8" in error


def test_a_mapped_column_must_exist_and_be_the_only_one_of_its_field(
    save: Save,
) -> None:
    path = save("email,Mail,event_name\na@b.c,a@b.c,x\n")
    error = file_error(path, mapping={"email": "Email", "user_id": "Id"})
    assert "mapping: no column has the heading 'Email', 'Id'" in error
    assert "more than one column for 'email'" in file_error(
        path, mapping={"email": "Mail"}
    )


def test_ignored_columns_are_left_out(save: Save) -> None:
    path = save("PLZ,email,,event_name, PLZ ,user_id,\n1,a@b.c,2,x,3,\x07,4\nb@b.c\n")
    row, short = read_all(path, ignore=["PLZ", "", "user_id"])
    assert record_of(row) == {"event_name": "x", "email": "a@b.c"}
    assert row.record == record_of(row)
    assert problems_of(short) == "1 cell, but the heading has 7"
    bad, _ = read_all(path, ignore=["PLZ", "", "event_name"], event_name="y")
    assert bad.record == {"event_name": "y", "email": "a@b.c", "user_id": "\x07"}


def test_an_ignored_column_leaves_its_field_to_another(save: Save) -> None:
    path = save("email,Mail,event_name\n1,a@b.c,x\n")
    row = read_one(path, mapping={"email": "Mail"}, ignore=["email"])
    assert record_of(row) == {"event_name": "x", "email": "a@b.c"}


def test_an_ignored_column_must_exist_and_not_be_required(save: Save) -> None:
    path = save(HEAD + "a@b.c,x\n")
    error = file_error(path, ignore=["PLZ", "", "email"])
    assert "line 1: ignore: no column has the heading '', 'PLZ'" in error
    assert "no column for email or user_id" in file_error(path, ignore=["email"])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_known_headings_determine_the_delimiter(save: Save, delimiter: str) -> None:
    rows = [
        ["email", "event_properties.a;b", "event_name", "Total, net"],
        ["a@b.c", "1,2;3\t4", "x", ""],
        ["a@b.c", "", "x", ""],
    ]
    if delimiter == ";":
        rows[0][1] = "event_properties.ab"
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    full, empty = read_all(save(file.getvalue()), mapping={"net": "Total, net"})
    assert list(record_of(full)["event_properties"].values()) == ["1,2;3\t4"]
    assert record_of(empty) == {"event_name": "x", "email": "a@b.c"}


@pytest.mark.parametrize(
    ("head", "problem"),
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
def test_unknown_headings_determine_the_delimiter_too(
    save: Save, head: str, problem: str
) -> None:
    assert f"unknown headings: {problem}" in file_error(save(f"{head}\n"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_spreadsheet_separated_by_semicolons_or_tabs_is_read(
    save: Save, delimiter: str, encoding: str
) -> None:
    text = (
        "Mail;Notiz;PLZ;\r\n"
        'ä@b.c;"1,5; ""ja""\r\nund\tmehr";1;\r\n'
        "b@b.c;kurz, knapp\r\n"
        "c@b.c;2,5;3;\r\n"
    ).replace(";", delimiter)
    options: dict[str, Any] = {
        "event_name": "x",
        "mapping": {"email": "Mail", "note": "Notiz"},
        "ignore": ["PLZ", ""],
    }
    first, short, last = read_all(save(text.encode(encoding)), **options)
    inside = f'1,5{delimiter} "ja"\r\nund\tmehr'
    assert record_of(first)["event_properties"] == {"note": inside}
    assert (short.line, last.line) == (4, 5)
    assert problems_of(short) == "2 cells, but the heading has 4"
    assert short.record == f"b@b.c{delimiter}kurz, knapp"
    assert record_of(last)["event_properties"] == {"note": "2,5"}


def test_the_order_of_the_columns_does_not_change_the_event(save: Save) -> None:
    head = "email,event_name,mailing_lists.m,mailing_lists.l,eventProperties.b"
    head += ",event_properties.a,contact_properties.d,contactProperties.c"
    cells = "a@b.c,x,true,false,1,2,3,4"
    types = {"a": "number"}
    row = read_one(save(f"{head}\n{cells}\n"), types=types)
    reversed_lines = [",".join(line.split(",")[::-1]) for line in (head, cells)]
    same = read_one(save("\n".join(reversed_lines)), types=types)
    assert json.dumps(record_of(row)) == json.dumps(record_of(same))
    assert list(record_of(row)["event_properties"].items()) == [("a", 2), ("b", "1")]
    assert list(record_of(row)["contact_properties"]) == ["c", "d"]
    assert list(record_of(row)["mailing_lists"]) == ["l", "m"]


def typed(save: Save, kind: str, text: str) -> InputRow:
    path = save(f"{HEAD[:-1]},event_properties.a\na@b.c,x,{text}\n")
    return read_one(path, types={"a": kind})


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
def test_a_cell_is_converted_to_its_type(
    save: Save, kind: str, text: str, value: object
) -> None:
    row = typed(save, kind, text)
    (found,) = record_of(row)["event_properties"].values()
    assert (type(found), found) == (type(value), value)
    assert isinstance(row.record, dict)
    assert row.record["event_properties"] == {"a": value}
    json.dumps(row.record)


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
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
def test_a_cell_that_is_not_of_its_type_is_a_problem(
    save: Save, kind: str, text: str, problem: str
) -> None:
    assert problems_of(typed(save, kind, text)).startswith(
        f"event_properties.a: {problem}"
    )


def test_all_problems_of_a_row_are_reported_with_its_record(save: Save) -> None:
    head = (
        "email,user_id,event_name,event_properties.n,event_properties.d,"
        "event_properties.e,contact_properties.b,mailing_lists.l,idempotency_key"
    )
    types = {"n": "number", "d": "date", "e": "date", "contactProperties.b": "boolean"}
    path = save(f"{head}\nada@,u1,a:b,abc,2026-01-31,soon,TRUE,yes,k1\n,,,7,,,x,,\n")
    first, second = read_all(path, types=types)
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


def test_a_row_with_more_or_fewer_cells_than_the_heading_is_a_problem(
    save: Save,
) -> None:
    short, long, good = read_all(save(f"{HEAD}a@b.c\na@b.c,x,y\na@b.c,x\n"))
    assert problems_of(short) == "1 cell, but the heading has 2"
    assert problems_of(long) == "3 cells, but the heading has 2"
    assert long.record == "a@b.c,x,y"
    assert good.event


def test_a_quoted_cell_can_contain_any_character(save: Save) -> None:
    text = 'She said "hi",\r\nthen; \rleft\n\n""'
    file = io.StringIO()
    heading = ["email", "event_name", "event_properties.a", "event_properties.b"]
    csv.writer(file).writerows([heading, ["a@b.c", "x", text, '"\n']])
    path = save(file.getvalue() + '"a@b.c",x,,')
    first, second = read_all(path)
    assert record_of(first)["event_properties"] == {"a": text, "b": '"\n'}
    assert first.line == 2
    assert second.event
    assert second.line == 7


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('"a"b,x', "a quote out of place: put a cell that contains quotes"),
        ('"a" ,x', "a quote out of place: "),
        ("a\0,x", "a NUL character"),
        ('"a\0",x', "a NUL character"),
        ("a\rb,x", "a carriage return"),
        ('"a"\r,x', "a carriage return"),
        ('"a",b\rb', "a carriage return"),
        (f'"{"a" * 200_000}",x', "a cell is longer than 131,072 characters"),
        (f"{'a' * 200_000},x", "a cell is longer than 131,072 characters"),
    ],
)
def test_broken_syntax_is_a_problem_of_its_row_alone(
    save: Save, row: str, problem: str
) -> None:
    invalid, valid = read_all(save(f"{HEAD}{row}\na@b.c,x\n"))
    assert problem in problems_of(invalid)
    assert invalid.line == 2
    assert invalid.record == row
    assert valid.event
    assert valid.line == 3


@pytest.mark.parametrize("cell", ['5" pipe', ' "hi" ', 'a"', 'a""b'])
def test_a_quote_within_an_unquoted_cell_is_part_of_the_cell(
    save: Save, cell: str
) -> None:
    path = save(f"email,event_name,event_properties.a\na@b.c,x,{cell}\nb@b.c,x,\n")
    first, second = read_all(path)
    assert record_of(first)["event_properties"] == {"a": cell}
    assert (second.line, second.key) == (3, None)


def test_lines_within_an_open_quote_are_not_rows(save: Save) -> None:
    rows = '1,"foo\nb@b.c,x\n3,"baz"\nc@b.c,x\nd@b.c,"a\n""b""\n","never\nclosed\n'
    invalid, valid, last = read_all(save(HEAD + rows))
    assert "a quote out of place (lines 2 to 4): " in problems_of(invalid)
    assert invalid.record == '1,"foo\nb@b.c,x\n3,"baz"'
    assert valid.event
    assert valid.line == 5
    assert problems_of(last) == "the quote that begins on line 8 is never closed"
    assert last.line == 6


@pytest.mark.parametrize("size", [1, 200_000])
def test_lines_within_a_quote_that_opens_after_a_stray_one_are_not_rows(
    save: Save, size: int
) -> None:
    """Even if the rest is too large for a cell."""
    row = '"a"b,"' + "x" * size + '\nb@b.c,x\n"'
    invalid, valid = read_all(save(f"{HEAD}{row}\nc@b.c,x\n"))
    assert "a quote out of place (lines 2 to 4): " in problems_of(invalid)
    assert invalid.record == row
    assert valid.event
    assert valid.line == 5


@pytest.mark.parametrize(
    "before", ["", '"",', 'a"b,', '"a""b,""",', '"a\n""",', 'x,"\ny,""z\n",']
)
@pytest.mark.parametrize("inside", ["", '""', '""x"",""y""', '\n,""\n'])
def test_the_line_at_which_an_unclosed_quote_begins_is_reported(
    save: Save, before: str, inside: str
) -> None:
    row = read_one(save(f'{HEAD}{before}"{inside}\nz'))
    line = 2 + before.count("\n")
    assert problems_of(row) == f"the quote that begins on line {line} is never closed"
    assert row.line == 2


def test_a_cell_of_many_lines_that_is_too_long_is_skipped_to_its_end(
    save: Save,
) -> None:
    row = 'a@b.c,"' + "b@b.c,x\n" * 50_000 + '"'
    invalid, valid = read_all(save(f"{HEAD}{row}\nc@b.c,x\n"))
    assert problems_of(invalid) == "a cell is longer than 131,072 characters"
    assert invalid.record == row
    assert valid.event
    assert valid.line == 50_003


def test_a_record_of_too_many_lines_is_skipped_to_its_end(save: Save) -> None:
    path = save(f'{HEAD}a@b.c,"\n' + "b@b.c,x\n" * 20 + '"\nc@b.c,x\n')
    invalid, valid = read(path, InputOptions(), max_record=100)
    assert problems_of(invalid) == "longer than 100 bytes (lines 2 to 23)"
    assert invalid.record == 'a@b.c,"…'
    assert valid.event
    assert valid.line == 24
