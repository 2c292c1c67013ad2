"""Tables of sentences and captions as people and spreadsheets save them, for the three commands that read some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deixis.batch.manifest import read_manifest
from deixis.benchmarks.folder import read_table
from deixis.training.captions import VideoCaptions
from deixis.types import DeixisError

Read = Callable[[Path], list[tuple[str, str]]]


def captions(path: Path) -> list[tuple[str, str]]:
    rows = VideoCaptions(path)
    return [(rows[number].film.name, rows[number].caption) for number in range(len(rows))]


def manifest(path: Path) -> list[tuple[str, str]]:
    return [(job.film, "|".join(job.sentences)) for job in read_manifest(str(path))]


def folder(path: Path) -> list[tuple[str, str]]:
    rows, problems, _ = read_table(path.parent)
    if problems:
        raise DeixisError(problems[0].what)
    return [(f"{row.film}.mp4", row.text) for row in rows]


READERS: dict[str, tuple[Read, str]] = {
    "captions": (captions, "film,caption\na.mp4,a dog\n"),
    "manifest": (manifest, "film,sentences\na.mp4,a dog\n"),
    "folder": (folder, "film,sentence,objects\na.mp4,a dog,1\n"),
}
READ: dict[str, Callable[[str], str | bytes]] = {
    "semicolons": lambda good: good.replace(",", ";"),
    "tabs": lambda good: good.replace(",", "\t"),
    "first bytes of UTF-8": lambda good: good.encode("utf-8-sig"),
    "as Excel in Europe": lambda good: good.replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"),
    "sep=": lambda good: "sep=;\n" + good.replace(",", ";"),
    "sep= of a tab": lambda good: "sep=\t\r\n" + good.replace(",", "\t"),
    "blank lines": lambda good: "\n  \n" + good.replace("\n", "\n\n"),
    "rows of commas": lambda good: ",,\n" + good.replace("\n", "\n,,,\n"),
    "empty cells at the end": lambda good: good.replace("\n", ",,\n"),
    "all in quotes": lambda good: good.replace(",", '","').replace("\n", '"\n"').join('""')[:-2] + "\n",
    "capitals": lambda good: good.replace("film", "Film"),
    "blanks after commas": lambda good: good.replace(",", ", "),
    "no end of the last line": lambda good: good.rstrip(),
}
REFUSED: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "nothing": (lambda good: "", "first"),
    "blank lines": (lambda good: "\n \n\n", "first"),
    "commas alone": (lambda good: ",,\n,,\n", "first"),
    "first bytes alone": (lambda good: b"\xef\xbb\xbf", "first"),
    "names alone": (lambda good: good.partition("\n")[0] + "\n", "no film|holds no sentence"),
    "names and commas": (lambda good: good.partition("\n")[0] + "\n,,\n,\n", "no film|holds no sentence"),
    "Latin-1": (lambda good: good.replace("dog", "d\xf6g").encode("latin-1"), "UTF-8"),
    "Latin-1 in the names": (lambda good: good.replace("\n", ",\xe9\n", 1).encode("latin-1"), "not UTF-8 text"),
    "UTF-16 without first bytes": (lambda good: good.encode("utf-16-be"), "its first line holds NUL"),
    "an open quote": (lambda good: good + 'b.mp4,"a cat\n', "unexpected end of data"),
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("saved", READ)
def test_a_table_is_read_however_it_was_saved(tmp_path: Path, reader: str, saved: str) -> None:
    read, good = READERS[reader]
    assert read(write(tmp_path / "sentences.csv", READ[saved](good))) == [("a.mp4", "a dog")]


@pytest.mark.parametrize("reader", ["manifest", "folder"])
@pytest.mark.parametrize(
    "saved", [lambda good: good.encode("utf-16"), lambda good: good.replace("\n", "\r"), lambda good: good + "\n"]
)
def test_tables_that_are_read_at_once_may_be_utf_16_or_of_an_old_mac(tmp_path: Path, reader: str, saved: Read) -> None:
    read, good = READERS[reader]
    assert read(write(tmp_path / "sentences.csv", saved(good))) == [("a.mp4", "a dog")]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("wrong", REFUSED)
def test_what_is_no_table_is_one_line_that_names_the_file(tmp_path: Path, reader: str, wrong: str) -> None:
    read, good = READERS[reader]
    make, words = REFUSED[wrong]
    path = write(tmp_path / "sentences.csv", make(good))
    with pytest.raises(DeixisError, match=words) as caught:
        read(path)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert len(line.splitlines()) == 1
    assert line.isprintable()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("film,caption\na.mp4,a dog\n".encode("utf-16"), r"it begins with b'\xff\xfe'"),
        (b"film,caption\ra.mp4,a dog\r", "new-line character"),
        (b'film,caption\na.mp4,"a\ndog"\n', "one line is one row"),
    ],
)
def test_a_list_of_captions_that_is_no_list_of_lines_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DeixisError, match=words.replace("\\", "\\\\")):
        captions(write(tmp_path / "sentences.csv", content))


def test_signs_that_cannot_be_printed_are_no_part_of_a_caption(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", b"film,caption\na.mp4,a\0dog \x07runs\n")
    assert captions(path) == [("a.mp4", "a dog runs")]
