"""`make data`: data/ as data.dvc pins it, from DVC's cache or remote, or else fetched.

Nothing under data/ is ever half there: new data is made in .state/ and takes the name when
it is whole and checked. What was downloaded stays in .state/downloads/, so a run that was
stopped goes on, and a changed table fetches only what is new.
"""

import errno
import fcntl
import http.client
import lzma
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.dvc import pins
from flows.dvc.pins import MadeFrom, Pin
from flows.dvc.repair import repair
from gptmill.files import atomic_folder
from gptmill.origins import MANIFEST, read_manifest
from gptmill.records import content_hash
from gptmill.sources.archive import visible_files
from gptmill.sources.build import (
    MAKES,
    Made,
    add_files,
    digest,
    make_files,
    write_manifest,
)
from gptmill.sources.fetch import fetch, is_kept
from gptmill.sources.table import Place, Source, parse, table_key
from tasks.project.environment import ROOT

SHOWN = 40  # changed files named one by one
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What may be wrong with one place, so that the next one of the same source is tried.
PLACE_FAILED = (
    ValueError,
    OSError,
    EOFError,
    http.client.HTTPException,
    lzma.LZMAError,
    subprocess.CalledProcessError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def main(arguments: list[str]) -> int:
    """Make data/; status 2 for a table that is wrong, 1 for data that cannot be had."""
    if arguments:
        raise ValueError("`make data` takes no arguments: sources.toml says what is fetched")
    sources = read_table(ROOT / "sources.toml")
    try:
        with one_at_a_time(ROOT):
            make_data(ROOT, sources)
    except OSError as error:
        full = error.errno in DISK_FULL
        say_error("the disk is full: make room, then `make data` goes on" if full else str(error))
        return 1
    except ValueError as error:
        say_error(str(error))
        return 1
    return 0


def say_error(text: str) -> None:
    """Say in one line what went wrong."""
    print(f"make data: {' '.join(text.split())}", file=sys.stderr)


def read_table(path: Path) -> tuple[Source, ...]:
    """Read the table of sources; raise ValueError with what is wrong and where."""
    try:
        return parse(tomllib.loads(path.read_text(encoding="utf-8")), makers=MAKES)
    except FileNotFoundError:
        raise ValueError(
            f"{path.name} is missing: `git checkout {path.name}` brings it back"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def make_data(root: Path, sources: Sequence[Source]) -> None:
    """Bring data/ to what data.dvc pins, or, after an edit of the table, to what it asks for.

    Raises ValueError where a source cannot be had, where what was fetched is not what is
    pinned though nobody edited the table, and where data/ holds work that would be lost.
    """
    repair(root)
    pin, now = pins.read_pin(root), origin_now(root, sources)
    edited = pin is None or pin.origin is None or now.edited_since(pin.origin)
    if pin and not edited and pins.matches(root, pin):
        refuse_unnoticed_edits(root)
        print(f"data/ is what data.dvc pins: {summary(root)}")
        return
    refuse_to_lose(root)
    if pin and not edited and (place := pins.restore(root, pin)):
        print(f"data/ is back from {place}: {summary(root)}")
        return
    before = pins.made_here(root)
    with atomic_folder(root / ".state" / "data") as folder:
        made = build(root, sources, folder)
        if pin and not edited:
            refuse_other_bytes(pin, folder, made)
    take(root)
    known = pin.origin.own if pin and pin.origin else {}
    own = {place.at["path"]: known.get(place.at["path"], "") for place in own_places(sources)}
    pins.write_pin(root, MadeFrom(now.table, made, own | dict(now.own)))
    print(f"data/ is made: {summary(root)}")
    if edited:
        report_changes(root, pin, before)


def origin_now(root: Path, sources: Sequence[Source]) -> MadeFrom:
    """Return what the table says now, and the hashes of the user's own files that are here."""
    paths = {
        place.at["path"]: root / Path(place.at["path"]).expanduser()
        for place in own_places(sources)
    }
    own = {name: pins.own_hash(path) for name, path in paths.items() if path.exists()}
    return MadeFrom(table_key(sources), {}, own)


def own_places(sources: Sequence[Source]) -> list[Place]:
    """Return the places that are files or folders on this machine."""
    return [place for source in sources for place in source.places if place.kind == "path"]


def build(root: Path, sources: Sequence[Source], folder: Path) -> dict[str, str]:
    """Make every source's files below `folder`; return a hash of what each source became."""
    from gptmill.sources.check import check_files  # takes torch in, which most runs don't need

    made_from: dict[str, list[Source]] = {}
    hashes = {}
    for source in sources:
        made = obtain(root, source)
        hashes[source.name] = pins.listing_hash({name: digest(made[name]) for name in made})
        paths = add_files(folder, source.target, made)
        for path in paths:
            made_from.setdefault(path, []).append(source)
    write_manifest(folder, made_from)
    try:
        check_files(folder)
    except ValueError as error:
        said = str(error).replace(str(folder), "data")
        raise ValueError(f"{said} (it comes from {makers_of(said, made_from)})") from None
    return hashes


def makers_of(said: str, made_from: Mapping[str, Sequence[Source]]) -> str:
    """Name the sources of the file, or else of the folder, that a message is about."""
    found = [
        source for path, made in made_from.items() if f"data/{path}" in said for source in made
    ]
    every = [source for made in made_from.values() for source in made]
    found = found or [source for source in every if f"data/{source.target}" in said]
    return ", ".join(dict.fromkeys(f"source {one.name}, {one.places[0]}" for one in found))


def obtain(root: Path, source: Source) -> Made:
    """Return a source's files from the first of its places that has the right ones."""
    reasons = []
    downloads = root / ".state" / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    for place in source.places:
        kept, start = is_kept(place, downloads), time.monotonic()
        try:
            fetched = fetch(place, downloads, root=root)
            seconds = time.monotonic() - start
            made = make_files(source, place, fetched)
        except PLACE_FAILED as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            reasons.append(str(error) if str(place) in str(error) else f"{place}: {error}")
            continue
        how = "kept from before" if kept else f"{seconds:.1f} s"
        how = "on this machine" if place.kind == "path" else how
        print(f"{source.name}: {place}, {size_of(fetched)}, {how}: {count(len(made))}", flush=True)
        return made
    raise ValueError(f"source {source.name}: {'; '.join(reasons)}. `make data` goes on from here")


def refuse_to_lose(root: Path) -> None:
    """Raise ValueError where data/ holds files that nothing else has."""
    lost = pins.unsaved(root)
    if lost:
        raise ValueError(
            f"data/ holds what neither sources.toml nor DVC knows: {some(lost)}. Move it out of "
            "data/ (raw data comes in by an entry in sources.toml), then run `make data`"
        )


def refuse_unnoticed_edits(root: Path) -> None:
    """Raise ValueError where data.dvc pins what was changed by hand: `dvc repro` pins anything."""
    changed = pins.altered(root)
    if changed:
        raise ValueError(
            f"{some([f'data/{name}' for name in changed])}: not what data/{MANIFEST}/ says, though "
            "data.dvc pins it: `dvc repro` alone takes in any change. `git checkout data.dvc` and "
            "`make data` bring the raw data back; changes come in by an entry in sources.toml"
        )


def refuse_other_bytes(pin: Pin, folder: Path, made: Mapping[str, str]) -> None:
    """Raise ValueError, naming sources and files, where new data is not what data.dvc pins."""
    if content_hash(folder) == pin.md5:
        return
    assert pin.origin is not None
    described = read_manifest(folder)["files"]
    changed = [name for name, found in made.items() if pin.origin.sources.get(name) != found]
    files = [name for name in described if set(described[name]["sources"]) & set(changed)]
    raise ValueError(
        f"the sources give other bytes than data.dvc pins, though sources.toml is as it was: "
        f"{some(files) or MANIFEST} (from {', '.join(changed) or 'the table'}). data/ was left "
        "alone; to accept the new bytes, remove data.dvc and run `make data`"
    )


def take(root: Path) -> None:
    """Put the new data in data/'s place; between the two renames a kill leaves none, never half."""
    old = root / ".state" / "data.old"
    shutil.rmtree(old, ignore_errors=True)
    if (root / "data").exists():
        (root / "data").rename(old)
    (root / ".state" / "data").rename(root / "data")
    shutil.rmtree(old, ignore_errors=True)


def report_changes(root: Path, pin: Pin | None, before: Mapping[str, str]) -> None:
    """Print what an edit of the table changed, file by file."""
    entries = read_manifest(root / "data")["files"]
    lines = [f"  removed  {name}" for name in sorted(set(before) - set(entries))]
    for name, entry in sorted(entries.items()):
        if name not in before:
            lines.append(f"  added    {name}, {entry['bytes']:,} bytes")
        elif before[name] != entry["sha256"]:
            change = f"{before[name][:12]} -> {entry['sha256'][:12]}"
            lines.append(f"  changed  {name}, {change}, {entry['bytes']:,} bytes")
    print("\n".join(lines[:SHOWN]) or "  no file changed")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more; data/{MANIFEST}/ has them all")
    new = pins.read_pin(root)
    assert new is not None
    print(f"data.dvc pins {new.md5}{f', before {pin.md5}' if pin and pin.md5 != new.md5 else ''}")


def some(names: Sequence[str]) -> str:
    """Name the first few of many files."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def summary(root: Path) -> str:
    """Say how much data/ holds."""
    files = pins.raw_files(root).values()
    return f"{count(len(files))}, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def count(files: int) -> str:
    """Say how many files there are."""
    return f"{files} file{'' if files == 1 else 's'}"


def size_of(path: Path) -> str:
    """Say how large a file, or all of a folder, is."""
    files = visible_files(path) if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


@contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Hold the lock that keeps two runs apart; the system frees it when a run dies."""
    (root / ".state").mkdir(exist_ok=True)
    with (root / ".state" / "data.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError("another `make data` is at work in this folder; wait for it") from None
        yield
