import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from gptmill.checkpoint.checkpoint import save_causal_lm
from gptmill.data.documents import read_documents, split_documents
from gptmill.data.token_file import TokenFile
from gptmill.data.token_shards import begin, begun, files_of_shard, unfinished, write_shard
from gptmill.files import read_json, write_json
from gptmill.formats.exporting import export_model
from gptmill.origins import read_origins
from gptmill.records import file_hashes
from gptmill.tokenizer import bpe_engines
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.tokenize import Tokenize, tokenize
from tests.support.fakes import FakeRun
from tests.support.project import write_tiny_manifest
from tests.support.tiny import (
    chatty_folder,
    tiny_bpe,
    tiny_config,
    tiny_gpt,
    tiny_tokenizer,
)

PARAMS = Tokenize(vocabulary="data/bpe", vocabulary_size=300, validation_fraction=0.25)
PARTS = ("train", "validation")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    tiny_bpe(tmp_path / "data" / "bpe")
    (tmp_path / "data" / "text").mkdir()
    for place in range(12):
        text = f"Document {place}: the na\u00efve quick fox, and <|endoftext|> spelled out.\n"
        (tmp_path / "data" / "text" / f"{place:02}.txt").write_text(text, encoding="utf-8")
    write_tiny_manifest(tmp_path / "data")
    return tmp_path


def body(project: Path, name: str = "tokenize", **changed: object) -> FakeRun:
    run = FakeRun(project, project / "artifacts" / name)
    tokenize.body(PARAMS.model_copy(update=changed), run)
    return run


def test_the_files_hold_every_document_once_in_order_of_names(project):
    run = body(project)
    tokenizer = tiny_tokenizer()
    documents = read_documents(project / "data" / "text")
    for part, expected in zip(PARTS, split_documents(documents, 0.25), strict=True):
        tokens = TokenFile.open(run.out / f"{part}.bin")
        ids: list[int] = []
        for place, document in enumerate(expected):
            ids += [tokenizer.eot_id] * (place > 0) + tokenizer.encode(document.text)
        assert tokens.ids.tolist() == ids
        assert tokens.names == tuple(document.name for document in expected)
        assert tokens.fingerprint == tokenizer.fingerprint


def test_it_is_written_down_where_the_text_comes_from(project):
    (origin,) = read_origins(body(project).out / "origins.json")
    known = (origin.name, origin.licence, origin.attribution, origin.files)
    assert known == ("tiny", "CC0-1.0", "these tests", 12)


def test_an_end_of_text_that_is_spelled_out_ends_no_document(project):
    tokens = TokenFile.open(body(project).out / "train.bin")
    ends = (tokens.ids == tiny_tokenizer().eot_id).sum()
    assert ends == len(tokens.names) - 1


def test_statistics_count_the_text_that_was_tokenized(project):
    run = body(project)
    statistics = read_json(run.out / "statistics.json")
    texts = [document.text for document in read_documents(project / "data" / "text")]
    for name, expected in (
        ("documents", 12),
        ("characters", sum(len(text) for text in texts)),
        ("bytes", sum(len(text.encode()) for text in texts)),
    ):
        assert sum(statistics[part][name] for part in PARTS) == expected
    for part in PARTS:
        assert statistics[part]["tokens"] == len(TokenFile.open(run.out / f"{part}.bin"))


def test_the_tokenizer_goes_with_the_ids(project):
    found = Tokenizer.from_folder(body(project).out / "tokenizer")
    assert found.fingerprint == tiny_tokenizer().fingerprint


def test_two_runs_write_the_same_bytes(project):
    one, other = body(project, "one"), body(project, "two")
    files = sorted(path.relative_to(one.out) for path in one.out.rglob("*") if path.is_file())
    assert len(files) >= 8
    for file in files:
        assert (one.out / file).read_bytes() == (other.out / file).read_bytes()


def test_bad_text_stops_before_anything_is_written(project):
    (project / "data" / "text" / "99.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"99\.txt is not UTF-8"):
        body(project)
    assert not list((project / "artifacts" / "tokenize").iterdir())


@pytest.mark.parametrize("fraction", [0, 1, -0.1])
def test_the_fraction_leaves_both_parts_something(fraction):
    with pytest.raises(ValidationError):
        Tokenize(vocabulary="data/bpe", vocabulary_size=300, validation_fraction=fraction)


def test_a_text_beyond_the_library_is_named_by_its_file(project, monkeypatch):
    monkeypatch.setattr(bpe_engines, "STRIDE", 10**9)  # a run that is not cut makes tiktoken panic
    (project / "data" / "text" / "07.txt").write_text(f"a{' ' * 1_100_000}b", encoding="utf-8")
    with pytest.raises(ValueError, match=r"data/text/07\.txt: the tokenizer cannot split the text"):
        body(project)


@pytest.mark.parametrize("form", ["hub", "gguf"])
def test_weights_give_their_own_vocabulary(project, form):
    place = chatty_folder(project / "data" / "weights" / "a")
    own = Tokenizer.from_folder(place)
    save_causal_lm(place, tiny_gpt(tiny_config(vocab_size=own.n_vocab)), own)
    if form == "gguf":
        export_model(place, project / "data" / "weights" / "b" / "a.gguf", form="gguf")
        place = project / "data" / "weights" / "b"
    run = body(project, vocabulary=place.relative_to(project).as_posix())
    found = Tokenizer.from_folder(run.out / "tokenizer")
    assert found.fingerprint == own.fingerprint
    tokens = TokenFile.open(run.out / "train.bin")
    assert tokens.vocab_size == own.n_vocab
    text = (project / "data" / "text" / tokens.names[0]).read_text(encoding="utf-8")
    end = tokens.starts[1] - 1
    assert tokens.ids[:end].tolist() == own.encode(text)
    assert tokens.ids[end] == own.eot_id


def test_weights_without_a_tokenizer_are_refused(project):
    (project / "data" / "weights" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"weights/a has no tokenizer: add the files"):
        body(project, vocabulary="data/weights/a")


def test_a_vocabulary_is_learned_from_the_training_part_alone(project):
    for place in range(12):  # a pair of letters for each document
        text = f"{chr(97 + place)}{chr(97 + place)} " * 60
        (project / "data" / "text" / f"{place:02}.txt").write_text(text, encoding="utf-8")
    run = body(project, vocabulary="data/text", vocabulary_size=262)
    tokenizer = Tokenizer.from_folder(run.out / "tokenizer")
    learned = {tokenizer.token_bytes(index).strip() for index in range(256, 261)}
    documents = {p: TokenFile.open(run.out / f"{p}.bin").names for p in PARTS}
    letters = {p: {chr(97 + int(name[:2])) for name in documents[p]} for p in PARTS}
    assert {chr(token[0]) for token in learned} <= letters["train"] - letters["validation"]


def test_a_vocabulary_larger_than_the_text_allows_is_refused(project):
    with pytest.raises(ValueError, match=r"tokenize\.vocabulary_size: .* 50,000 are wanted: lower"):
        body(project, vocabulary="data/text", vocabulary_size=50_000)


def test_near_duplicates_lie_in_one_part_and_are_shown(project):
    documents = read_documents(project / "data" / "text")
    alone = split_documents(documents, 0.25)
    train, validation = ([f"text/{document.name}" for document in part] for part in alone)
    path = project / "data" / "manifest" / "text.json"
    for group in (train[0], validation[0]):
        content = read_json(path)
        for name, twin in ((train[0], validation[0]), (validation[0], train[0])):
            near = {"group": group, "twin": twin, "similarity": 0.8123}
            content["files"][name]["near"] = near
        write_json(path, content)
        run = body(project, f"near_{group[5:7]}")
        names = {part: TokenFile.open(run.out / f"{part}.bin").names for part in PARTS}
        (part,) = (part for part in PARTS if group[5:] in names[part])
        assert {train[0][5:], validation[0][5:]} <= set(names[part])
        assert len(names["train"]) + len(names["validation"]) == 12
        (row,) = run.shown["near-duplicates"].to_dict("records")
        assert (row["similarity"], row["part"], row["twin part"]) == (0.8123, part, part)
        assert row["begins"].startswith("Document ")
        assert {row["document"], row["twin document"]} == {train[0], validation[0]}


def test_documents_that_are_all_near_duplicates_are_refused(project):
    path = project / "data" / "manifest" / "text.json"
    content = read_json(path)
    for file in content["files"].values():
        file["near"] = {"group": "text/00.txt", "twin": "text/00.txt", "similarity": 0.9}
    write_json(path, content)
    with pytest.raises(ValueError, match=r"1 distinct text\(s\).*`near_duplicates` in sources"):
        body(project)


def weighted(project: Path, sources: dict[str, dict[str, float]]) -> None:
    """Give documents 00 to 02 to the source few, all others to many."""
    path = project / "data" / "manifest" / "text.json"
    content = read_json(path)
    known = {"licence": "CC0-1.0", "attribution": "these tests"}
    content["sources"] = {name: {**known, **values} for name, values in sources.items()}
    for name, entry in content["files"].items():
        entry["sources"] = ["few" if name < "text/03" else "many"]
    write_json(path, content)


@pytest.mark.parametrize(
    ("few", "many", "share"),
    [
        ({"weight": 3.0}, {}, lambda n: 3 * n / (3 * n + 1 - n)),
        ({"temperature": 1e9}, {"temperature": 1e9}, lambda n: 0.5),
        ({"temperature": 2.0}, {"temperature": 2.0}, lambda n: n**0.5 / (n**0.5 + (1 - n) ** 0.5)),
    ],
)
def test_sources_get_the_shares_that_weights_and_temperature_ask_for(project, few, many, share):
    plain = (body(project, "plain").out / "train.bin").read_bytes()
    weighted(project, {"few": {}, "many": {}})
    out = body(project, "unweighted").out
    assert (out / "train.bin").read_bytes() == plain
    assert not (out / "mixture.json").exists()
    weighted(project, {"few": few, "many": many})
    out = body(project, "weighted").out
    rows = {row["source"]: row for row in read_json(out / "mixture.json")}
    assert rows["few"]["asked"] == pytest.approx(share(rows["few"]["share_of_text"]))
    tokens = TokenFile.open(out / "train.bin")
    drawn = [name < "03" for name in tokens.names]
    assert rows["few"]["drawn"] == pytest.approx(sum(drawn) / len(drawn), abs=0.02)
    assert abs(rows["few"]["drawn"] - rows["few"]["asked"]) < 1 / len(drawn)  # half a document
    again = body(project, "again").out
    assert (again / "train.bin").read_bytes() == (out / "train.bin").read_bytes()
    names = {part: TokenFile.open(out / f"{part}.bin").names for part in PARTS}
    assert not set(names["train"]) & set(names["validation"])


def written(project: Path, run: FakeRun, shards: int) -> None:
    """Write shards in the folder of a run, the last shard first; one process is killed."""
    run.shards.mkdir()
    begin(run.shards, shards)
    (run.shards / ".2-of-5.abc.partial").mkdir()
    texts = project / "data" / "text"
    for shard in reversed(range(shards)):
        write_shard(texts, run.shards, tiny_tokenizer(), shard=shard, shards=shards)


@pytest.mark.parametrize("few", [{}, {"weight": 3.0}])
def test_shards_give_the_bytes_of_a_stage_without_shards(project, few):
    weighted(project, {"few": few, "many": {}})  # texts of a mixture are repeated
    expected = file_hashes(body(project).out)
    run = FakeRun(project, project / "artifacts" / "sharded")
    written(project, run, 5)
    tokenize.body(PARAMS, run)
    assert file_hashes(run.out) == expected
    assert run.said == ["ids read from 5 shards"]
    (run.shards / "3-of-5").rename(run.shards / ".3-of-5.partial")
    shutil.rmtree(run.out)
    run.out.mkdir()
    tokenize.body(PARAMS, run)
    assert file_hashes(run.out) == expected
    assert run.said[-1] == "1 of 5 shards are unfinished: all texts are encoded here"


def test_ids_come_from_the_shards(project):
    run = FakeRun(project, project / "artifacts" / "sharded")
    written(project, run, 2)
    path = run.shards / "0-of-2" / "tokens.bin"
    path.write_bytes(bytes(path.stat().st_size))
    tokenize.body(PARAMS, run)
    tokens = TokenFile.open(run.out / "train.bin")
    name = next(place for place, name in enumerate(tokens.names) if int(name[:2]) % 2 == 0)
    assert tokens.ids[tokens.starts[name] : tokens.starts[name] + 5].tolist() == [0] * 5


def test_two_processes_may_write_the_same_shard(project):
    """The second process finds the folder of the first at its end."""
    folder, texts = project / "shards", project / "data" / "text"
    folder.mkdir()
    tokenizer = tiny_tokenizer()

    class Overtaken:
        eot_id, n_vocab, fingerprint = tokenizer.eot_id, tokenizer.n_vocab, tokenizer.fingerprint

        def encode_documents(self, documents):
            write_shard(texts, folder, tokenizer, shard=1, shards=3)
            return tokenizer.encode_documents(documents)

    write_shard(texts, folder, Overtaken(), shard=1, shards=3)
    assert [path.name for path in folder.iterdir()] == ["1-of-3"]
    assert unfinished(folder, 3) == [0, 2]


@pytest.mark.parametrize(
    ("shards", "files", "sentence"),
    [
        (1, 12, r"^1 shards of the 12 text file\(s\) below .*; allowed is 2 to 12$"),
        (13, 12, r"allowed is 2 to 12$"),
        (2, 1, r"allowed is none, since a file is not divided$"),
    ],
)
def test_numbers_of_shards_that_are_refused(project, shards, files, sentence):
    for path in sorted((project / "data" / "text").iterdir())[files:]:
        path.unlink()
    with pytest.raises(ValueError, match=sentence):
        files_of_shard(project / "data" / "text", shard=0, shards=shards)


def test_shards_of_another_number_or_tokenizer_are_refused(project):
    run = FakeRun(project, project / "artifacts" / "sharded")
    written(project, run, 3)
    with pytest.raises(ValueError, match=r"has begun with 3 shards, not 4: keep the number"):
        begin(run.shards, 4)
    assert begun(run.shards) == 3
    with pytest.raises(ValueError, match="has ids of another tokenizer: remove the folder"):
        tokenize.body(PARAMS.model_copy(update={"vocabulary": "data/text"}), run)
    write_json(run.shards / "shards.json", {"shards": "3"})
    with pytest.raises(ValueError, match=r"shards\.json: shards is '3'"):
        begun(run.shards)
