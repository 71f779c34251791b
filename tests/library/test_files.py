"""Files that are read back as they were written."""

from pathlib import Path

import pandas as pd
import pytest

from gptmill.files import read_json, write_csv

CELLS = ["a\rb", "a\r\nb", "a\nb", 'say "x"', "x,y", "", "\r", "end\r\n", " x ", "NA", "\u2028x"]


def test_any_cell_reads_back(tmp_path: Path) -> None:
    table = pd.DataFrame({"label": CELLS, "text": CELLS[::-1]})
    write_csv(tmp_path / "some.csv", table)
    again = pd.read_csv(tmp_path / "some.csv", dtype=str, keep_default_na=False)
    assert again.to_dict("list") == table.to_dict("list")


def test_rows_end_in_a_newline_and_cells_are_quoted_only_where_needed(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["plain", "two\nlines"], "loss": [0.1, None]})
    write_csv(tmp_path / "some.csv", table)
    assert (tmp_path / "some.csv").read_bytes() == b'text,loss\nplain,0.1\n"two\nlines",\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "an object has the key 'c' twice; allowed is once"),
        ('{"a": 1}'.encode("utf-16"), "is UTF-16; allowed is UTF-8"),
        (b'{"a": "\xff"}', "is not UTF-8"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'{"a": "\\ud800"}', "an escaped surrogate stands alone"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": 1', "is not UTF-8 JSON"),
        (b"", "is not UTF-8 JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a git-lfs pointer"),
    ],
)
def test_json_that_is_not_strict_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "some.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"some.json.* ?{message}"):
        read_json(tmp_path / "some.json")


def test_a_byte_order_mark_and_paired_surrogates_are_read(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}')
    assert read_json(tmp_path / "some.json") == {"a": "\U0001f600"}
