import numpy as np
import pytest

from gptmill.data.token_file import TokenFile
from gptmill.files import read_json

END = 9


def write(path, documents=((1, 2, 3), (4,), (5, 6)), *, vocab_size=10):
    return TokenFile.write(
        path,
        [np.array(document, dtype=np.uint32) for document in documents],
        names=[f"{place}.txt" for place in range(len(documents))],
        separator=END,
        vocab_size=vocab_size,
        fingerprint="abc",
    )


def test_documents_lie_one_behind_the_other_with_a_separator_between(tmp_path):
    tokens = write(tmp_path / "train.bin")
    assert tokens.ids.tolist() == [1, 2, 3, END, 4, END, 5, 6]
    assert tokens.starts.tolist() == [0, 4, 6]
    assert len(tokens) == 8
    assert (tokens.vocab_size, tokens.fingerprint) == (10, "abc")


def test_each_position_belongs_to_a_document_and_a_separator_to_the_one_before(tmp_path):
    tokens = write(tmp_path / "train.bin")
    names = [tokens.document_at(position) for position in range(len(tokens))]
    assert names == ["0.txt"] * 4 + ["1.txt"] * 2 + ["2.txt"] * 2


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "width"), [(2**16, "uint16", 2), (2**16 + 1, "uint32", 4)]
)
def test_ids_take_two_bytes_as_long_as_they_fit(tmp_path, vocab_size, dtype, width):
    largest = vocab_size - 1
    tokens = write(tmp_path / "train.bin", [(1, largest)], vocab_size=vocab_size)
    assert tokens.ids.tolist() == [1, largest]
    assert read_json(tmp_path / "train.json")["dtype"] == dtype
    content = (tmp_path / "train.bin").read_bytes()
    assert content == b"".join(id.to_bytes(width, "little") for id in (1, largest))


def test_a_cut_file_is_refused(tmp_path):
    path = tmp_path / "train.bin"
    write(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="has 15 bytes and the header promises 16"):
        TokenFile.open(path)


def test_equal_documents_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.bin")
    for file in ("train.bin", "train.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_file_is_mapped_not_read(tmp_path):
    tokens = write(tmp_path / "train.bin")
    assert isinstance(tokens.ids, np.memmap)
    assert not tokens.ids.flags.writeable
