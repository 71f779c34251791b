"""Token files: memory-mapped arrays of the ids of many documents.

`NAME.bin` is a flat array of little-endian uint16, or of uint32 where ids do not fit.
`NAME.json` is the header: count, dtype, vocabulary size, the tokenizer's fingerprint, and the
name and first position of each document. A separator id stands between documents.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from gptmill.files import checked, read_json, write_json, writing

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
ID_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
LARGEST_UINT16 = 2**16 - 1


@dataclass(frozen=True)
class _Documents:
    """The names and first positions of the documents."""

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    starts: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...]


@dataclass(frozen=True)
class _Header:
    """The content of `NAME.json`."""

    count: Annotated[int, Field(ge=1)]
    dtype: Literal["uint16", "uint32"]
    vocab_size: Annotated[int, Field(ge=1, le=2**32)]
    fingerprint: str
    documents: _Documents


def _read_header(path: Path) -> _Header:
    header: _Header = checked(_Header, read_json(path), path)
    names, starts = header.documents.names, header.documents.starts
    positions = (*starts, header.count)
    ascending = all(first <= second for first, second in pairwise(positions))
    if len(names) != len(starts) or starts[0] != 0 or not ascending:
        raise ValueError(
            f"{path}: documents.starts has {len(starts)} positions for {len(names)} names; allowed "
            f"are ascending positions from 0 to {header.count}, one per name: create the file again"
        )
    return header


@dataclass(frozen=True)
class TokenFile:
    """An open token file, read from disk on indexing."""

    ids: Ids  # (N,)
    vocab_size: int
    fingerprint: str
    names: tuple[str, ...]
    starts: npt.NDArray[np.int64]  # (documents,) position of each document's first id

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def open(cls, path: Path) -> "TokenFile":
        """Memory-map the .bin file at `path` and read the header.

        The header is the .json file of the same name. Raises ValueError if the length of the
        .bin file differs from the header.
        """
        header = _read_header(path.with_suffix(".json"))
        dtype = ID_DTYPES[header.dtype]
        expected = header.count * dtype.itemsize
        if path.stat().st_size != expected:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes and the header promises {expected}: "
                "the file was cut or belongs to a different header; create the file again"
            )
        return cls(
            ids=np.memmap(path, dtype=dtype, mode="r"),
            vocab_size=header.vocab_size,
            fingerprint=header.fingerprint,
            names=header.documents.names,
            starts=np.array(header.documents.starts, dtype=np.int64),
        )

    @staticmethod
    def write(
        path: Path,
        documents: Sequence[npt.NDArray[np.uint32]],
        *,
        names: Sequence[str],
        separator: int,
        vocab_size: int,
        fingerprint: str,
    ) -> "TokenFile":
        """Write the ids of each document, separated by `separator`, and open the file."""
        return TokenFile.write_parts(
            path,
            enumerate(documents),
            names=names,
            separator=separator,
            vocab_size=vocab_size,
            fingerprint=fingerprint,
        )

    @staticmethod
    def write_parts(
        path: Path,
        parts: Iterable[tuple[int, npt.NDArray[np.uint32]]],
        *,
        names: Sequence[str],
        separator: int,
        vocab_size: int,
        fingerprint: str,
    ) -> "TokenFile":
        """Write ids as they come, each part with the index of its document, and open the file.

        Each document has at least one part, and the indices ascend.
        """
        assert names, "a token file needs at least one document"
        dtype = "uint16" if vocab_size - 1 <= LARGEST_UINT16 else "uint32"
        starts: list[int] = []
        count = 0
        with writing(path) as file:
            for index, ids in parts:
                assert ids.max(initial=0) < vocab_size, f"an id outside {vocab_size}"
                if index == len(starts):
                    if index:
                        file.write(np.array([separator], ID_DTYPES[dtype]).tobytes())
                        count += 1
                    starts.append(count)
                assert index == len(starts) - 1, "the documents come in order"
                file.write(ids.astype(ID_DTYPES[dtype]).tobytes())
                count += len(ids)
        assert len(starts) == len(names), "each document has a name"
        header = {
            "count": count,
            "dtype": dtype,
            "vocab_size": vocab_size,
            "fingerprint": fingerprint,
            "documents": {"names": list(names), "starts": starts},
        }
        write_json(path.with_suffix(".json"), header)
        return TokenFile.open(path)

    def document_at(self, position: int) -> str:
        """Return the name of the document at `position`.

        Positions count from the start of the file. A separator belongs to the document before.
        """
        return self.names[int(np.searchsorted(self.starts, position, side="right")) - 1]

    def documents_in(self, position: int, length: int) -> list[str]:
        """Return the document names in a range of ids.

        The range has `length` ids and starts at `position`.
        """
        first, last = (
            int(np.searchsorted(self.starts, index, side="right")) - 1
            for index in (position, position + length - 1)
        )
        return list(self.names[first : last + 1])
