import pytest

from gptmill.data.documents import decode_text, read_documents, split_documents


def put(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.txt").write_bytes(content)


def test_every_text_below_the_folder_is_read_in_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    put(tmp_path, c=b"three", a=b"one")
    put(tmp_path / "b", z=b"two")
    (tmp_path / "note.md").write_text("not a document", encoding="utf-8")
    names = [document.name for document in read_documents(tmp_path)]
    assert names == ["a.txt", "b/z.txt", "c.txt"]


def test_a_text_is_the_same_whichever_system_wrote_it(tmp_path):
    put(tmp_path, windows=b"\xef\xbb\xbfone\r\ntwo\r\n", unix=b"one\ntwo\n", mac=b"one\rtwo\r")
    assert {document.text for document in read_documents(tmp_path)} == {"one\ntwo\n"}


def test_any_unicode_survives(tmp_path):
    text = " na\u00efve \u65e5\u672c\u8a9e \U0001f600 \u2028\u2029\x85\f\v\x1c\x1d\x1e \t\n\n "
    put(tmp_path, a=text.encode())
    assert read_documents(tmp_path)[0].text == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad\.txt is empty"),
        (b" \n\t", r"bad\.txt is empty"),
        (b"text\0more", r"bad\.txt is not plain text: NUL byte at offset 4"),
        ("text".encode("utf-16"), r"bad\.txt is not plain text"),
        (b"caf\xc3\xa9 caf\xe9", r"bad\.txt is not UTF-8 text \(line 1\): byte 0xe9 at offset 9"),
        (b"cut \xe2\x82", r"bad\.txt is not UTF-8 text \(line 1\): byte 0xe2 at offset 4"),
        (
            b"\xed\xb2\x80 a lone surrogate",
            r"bad\.txt is not UTF-8 text \(line 1\): byte 0xed at offset 0",
        ),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, content, message):
    put(tmp_path, good=b"good", bad=content)
    with pytest.raises(ValueError, match=message):
        read_documents(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no \.txt file"):
        read_documents(tmp_path)


def documents(folder, texts):
    """Write the texts, a file each, and measure them."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return read_documents(folder)


def numbered(folder, count):
    return documents(folder, {f"{place:04}": f"text {place}" for place in range(count)})


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 2**18])
def test_pieces_and_words_are_those_of_the_whole_text(tmp_path, monkeypatch, piece):
    monkeypatch.setattr("gptmill.data.documents.PIECE", piece)
    content = "\ufeff one  two\r\n\r\nthree\rna\u00efve \U0001f600\n".encode()
    put(tmp_path, a=content)
    (document,) = read_documents(tmp_path)
    text = decode_text(content, "a")
    assert document.text == text
    assert (document.characters, document.size) == (len(text), len(text.encode()))
    assert document.words() == len(text.split())
    assert max(map(len, document.pieces())) <= piece


def test_a_fault_far_into_a_file_is_placed_as_in_the_whole_text(tmp_path, monkeypatch):
    monkeypatch.setattr("gptmill.data.documents.BLOCK", 5)
    for content in (b"one\ntwo\nth\xc3\xa9\n\xe9 four", b"one\ntwo \xe2\x82", b"one\ntwo\nthr\0"):
        put(tmp_path, a=content)
        with pytest.raises(ValueError, match=r"a\.txt") as whole:
            decode_text(content, tmp_path / "a.txt")
        with pytest.raises(ValueError, match=r"a\.txt") as streamed:
            read_documents(tmp_path)
        assert str(streamed.value) == str(whole.value)


def test_the_split_is_by_hash_near_the_fraction_and_loses_nothing(tmp_path):
    given = numbered(tmp_path, 2000)
    train, validation = split_documents(given, 0.1)
    assert sorted([*train, *validation], key=lambda d: d.name) == sorted(
        given, key=lambda d: d.name
    )
    assert 150 < len(validation) < 250


def test_a_document_keeps_its_part_when_others_come_and_names_change(tmp_path):
    _, before = split_documents(numbered(tmp_path / "one", 200), 0.1)
    renamed = {f"new {place}": f"text {place}" for place in range(300)}
    _, after = split_documents(documents(tmp_path / "other", renamed), 0.1)
    assert {one.text for one in before} < {one.text for one in after}


def test_equal_texts_stay_together(tmp_path):
    twins = {f"{place}-{copy}": f"text {place}" for place in range(50) for copy in "ab"}
    train, validation = split_documents(documents(tmp_path, twins), 0.3)
    assert not {one.text for one in train} & {one.text for one in validation}


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_each_part_has_a_document_even_of_two(tmp_path, fraction):
    train, validation = split_documents(numbered(tmp_path, 2), fraction)
    assert (len(train), len(validation)) == (1, 1)


def test_one_text_cannot_be_split(tmp_path):
    with pytest.raises(ValueError, match="give at least 2 files"):
        split_documents(documents(tmp_path, {"a": "same", "b": "same"}), 0.1)


def test_a_single_text_is_cut_near_its_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("gptmill.data.documents.PIECE", 7)
    text = "0123456\u00e989" * 2
    parts = split_documents(documents(tmp_path, {"a": text}), 0.1)
    assert [[(one.name, one.text, one.size) for one in part] for part in parts] == [
        [("a.txt", text[:18], 20)],
        [("a.txt", text[18:], 2)],
    ]
    with pytest.raises(ValueError, match=r"a\.txt is too short to be cut into a training"):
        split_documents(documents(tmp_path, {"a": "x"}), 0.1)
