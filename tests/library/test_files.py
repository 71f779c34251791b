"""Files that are read back as they were written."""

from pathlib import Path

import pandas as pd

from gptmill.files import write_csv

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
