"""Files of input: formats, encodings, compression, fingerprints, memory."""

import gzip
import hashlib
import os
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.backfills import (
    Save,
    file_error,
    problems_of,
    read_all,
    read_one,
    record_of,
)

from loops_async import ConfigurationError, InputOptions
from loops_async._backfill.input import InputRow, fingerprint, read

HEAD = "email,event_name\n"
ADA = '{"email":"ada@example.com","event_name":"signup"}'


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
def test_the_name_of_a_file_determines_its_format(save: Save, name: str) -> None:
    content = f"{HEAD}a@b.c,x\n" if "sv" in name.lower() else ADA
    assert read_one(save(content, name)).event


def test_the_option_format_overrides_the_name(save: Save) -> None:
    assert read_one(save(ADA, "a.csv"), format="jsonl").event
    assert "set the format, csv or jsonl" in file_error(save(ADA, "a.txt"))


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    assert "No such file" in file_error(tmp_path / "none.csv")
    with pytest.raises(ConfigurationError, match="No such file"):
        fingerprint(tmp_path / "none.csv")
    (tmp_path / "dir.csv").mkdir()
    assert "s a directory" in file_error(tmp_path / "dir.csv")


@pytest.mark.parametrize(
    "content", [b"", b"\n \r\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)]
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_an_empty_file_is_refused(save: Save, name: str, content: bytes) -> None:
    assert "the file is empty" in file_error(save(content, name))


def test_the_fingerprint_is_the_sha_256_of_the_stored_bytes(save: Save) -> None:
    content = gzip.compress(b"abc" * 1000)
    assert fingerprint(save(content)) == hashlib.sha256(content).hexdigest()


def test_the_fingerprint_is_empty_if_the_run_is_stopped(save: Save) -> None:
    path = save(b"x" * 3_000_000)
    stopping = [False, False, True]
    assert fingerprint(path, lambda: stopping.pop(0)) == ""
    assert stopping == []
    assert fingerprint(save(b"", "none.csv"), lambda: True) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_path_that_is_not_utf_8_is_shown_escaped(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.csv")
    shown = f"{tmp_path}/caf\\xe9.csv"
    for function in (read_all, fingerprint):
        with pytest.raises(ConfigurationError) as caught:
            function(path)
        reason = "cannot be read: No such file or directory"
        assert str(caught.value) == f"{shown}: {reason}"
    path.write_text(HEAD + "a@b.c,x\na@b.c\n")
    assert [row.file for row in read_all(path)] == [shown, shown]
    assert fingerprint(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text("Plan")
    with pytest.raises(ConfigurationError) as caught:
        read_all(path)
    assert str(caught.value).startswith(f"{shown}, line 1: unknown headings")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("last", [True, False])
def test_each_encoding_and_line_end_is_read_gzipped_or_not(
    save: Save, zipped: bool, end: str, encoding: str, last: bool
) -> None:
    text = "email,event_name,contactProperties.name\nada@example.com,signup,Zoë 😀"
    content = (text + "\n" * last).replace("\n", end).encode(encoding)
    row = read_one(save(gzip.compress(content) if zipped else content))
    assert record_of(row)["contact_properties"] == {"name": "Zoë 😀"}
    assert row.line == 2


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_big_endian_utf_16_is_read(save: Save, name: str) -> None:
    text = f"{HEAD}ä@b.c,x\n" if name == "a.csv" else ADA
    assert read_one(save(b"\xfe\xff" + text.encode("utf-16-be"), name)).event


def test_utf_16_that_exceeds_one_chunk_is_read(save: Save) -> None:
    rows = "".join(f"a{n}@b.c,x\n" for n in range(9_000))
    found = read_all(save((HEAD + rows).encode("utf-16")))
    assert [row.line for row in found] == list(range(2, 9_002))
    assert all(row.event for row in found)


def test_bytes_that_are_not_utf_8_are_a_problem_of_their_row(save: Save) -> None:
    path = save(HEAD.encode() + b'a@b.c,x\n\xc3\xa4,x\xe9\nb@b.c,"x\n\xff"\nc@b.c,x')
    first, unquoted, quoted, last = read_all(path)
    assert first.event
    assert last.event
    assert last.line == 6
    advice = "not valid UTF-8, save the file as UTF-8"
    assert problems_of(unquoted) == f"line 3, character 4: {advice}"
    assert unquoted.record == "ä,x\\xe9"
    assert problems_of(quoted) == f"line 5, character 1: {advice}"
    invalid, valid = read_all(save(b'{"email":"\xe9"}\n' + ADA.encode(), "a.jsonl"))
    assert valid.event
    assert problems_of(invalid) == f"line 1, character 11: {advice}"


def test_broken_utf_16_is_a_problem_of_its_row(save: Save) -> None:
    text = f"\ufeff{HEAD}a@b.c,\ud800\nb@b.c,x\nc@b.c,x"
    content = text.encode("utf-16-le", "surrogatepass") + b"y"
    lone_surrogate, valid, half_character = read_all(save(content))
    advice = "not valid UTF-16, save the file as UTF-8"
    assert problems_of(lone_surrogate) == f"line 2, character 7: {advice}"
    assert valid.event
    assert problems_of(half_character) == f"line 4, character 8: {advice}"


def collect(rows: Iterator[InputRow], into: list[InputRow]) -> None:
    for row in rows:
        into.append(row)  # noqa: PERF402 - extend() may lose the rows before an error


def test_rows_before_the_damage_in_a_gzip_are_read(save: Save) -> None:
    rows = "".join(
        f"{hashlib.sha256(b'%d' % n).hexdigest()}@b.c,x\n" for n in range(5000)
    )
    content = gzip.compress((HEAD + rows).encode())
    path = save(content[: len(content) // 2], "a.csv.gz")
    found: list[InputRow] = []
    with pytest.raises(ConfigurationError, match=r"a\.csv\.gz: cannot be read after l"):
        collect(read(path, InputOptions()), found)
    assert len(found) > 1000
    assert all(row.event for row in found)
    path.write_bytes(content[:-8] + b"12345678")
    assert "CRC" in file_error(path)
    path.write_bytes(content[:20] + b"\xff" * 50 + content[70:])
    assert "cannot be read: Error -3" in file_error(path)


def test_memory_is_bounded_for_a_line_of_any_length(save: Save) -> None:
    long = b"x" * 12_000_000
    content = HEAD.encode() + long + b"\nb@b.c,x\n" + b'"' + long
    path = save(gzip.compress(content, 1))
    del long, content
    tracemalloc.start()
    try:
        first, valid, last = read_all(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000
    assert problems_of(first) == "longer than 1,000,000 bytes"
    assert isinstance(first.record, str)
    assert len(first.record) < 2000
    assert valid.event
    assert valid.line == 3
    assert problems_of(last) == "longer than 1,000,000 bytes"
    assert last.line == 4


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "before", "line"),
    [("a.csv", HEAD, "ada@example.com,signup"), ("a.jsonl", f"{ADA}\n", ADA)],
)
def test_a_record_of_exactly_the_limit_is_read_and_a_longer_one_is_not(
    save: Save, name: str, before: str, line: str, mark: str
) -> None:
    path = save(f"{mark}{before}{line}\n", name)
    size = len(line) + 1
    *_, row = read(path, InputOptions(), max_record=size)
    assert row.event
    *_, row = read(path, InputOptions(), max_record=size - 1)
    assert problems_of(row) == f"longer than {size - 1} bytes"
    assert row.record == line + "…"
