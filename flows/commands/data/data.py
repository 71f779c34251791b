"""`make data`: bring data/ to the state pinned in data.dvc.

The data comes from DVC's cache or remote, or is fetched from the sources. data/ is never
half-written: new data is built in .state/ and renamed to data/ once complete and checked.
Downloads stay in .state/downloads/: a stopped run resumes, and a changed table fetches only new
downloads.
"""

import errno
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
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.commands.data.base import way_without
from flows.dvc import own, pins
from flows.dvc.pins import MadeFrom, Pin
from flows.dvc.repair import repair
from flows.own import data as own_data
from flows.own.near import near_lines
from flows.own.report import report
from flows.own.training import ahead
from flows.sweeps.params import edited
from gptmill.files import atomic_folder, write_text
from gptmill.origins import MANIFEST, read_manifest
from gptmill.records import content_hash
from gptmill.sources.address import PassingError, hidden
from gptmill.sources.archive import visible_files
from gptmill.sources.build import (
    MAKES,
    Made,
    add_files,
    make_files,
    near_texts,
    write_manifest,
)
from gptmill.sources.fetch import fetch, is_kept
from gptmill.sources.own.converted import Converted
from gptmill.sources.table import Place, Source, parse, table_key
from tasks.processes import locks
from tasks.project.environment import ROOT, project_of
from tasks.project.graph import read_text

SHOWN = 40  # changed files listed by name
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors of a single place, after which the next place of the same source is tried.
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
    """Build data/ and return the exit status.

    The status is 1 for unobtainable data. A wrong table raises ValueError, and the command then
    ends with status 2.
    """
    request = own_data.requested(arguments)
    sources = read_table(ROOT / "sources.toml")
    try:
        with locks.project("make data", root=ROOT):
            if request is None:
                make_data(ROOT, sources)
            else:
                add_own(ROOT, request)
    except (OSError, ValueError) as error:
        print(f"make data: {reason(error)}", file=sys.stderr)
        return 1
    return 0


def add_own(root: Path, request: own_data.Request) -> None:
    """Enter the user's own data in sources.toml and params.yaml, build data/, scale and report.

    On a failure both files are as before.
    """
    with own_data.entered(root, request) as entry:
        make_data(root, read_table(root / "sources.toml"))
        changes, training = ahead(root, entry)
        if changes:
            path = root / "params.yaml"
            write_text(path, edited(read_text(path), changes))
    print(report(root, entry, training))


def reason(error: OSError | ValueError) -> str:
    """Return the error message for unobtainable data, in a single line."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "the disk is full: free some space, then run `make data` again to continue"
    return " ".join(hidden(str(error)).split())


def read_table(path: Path) -> tuple[Source, ...]:
    """Load the table of sources.

    Raises ValueError with the mistake and its position.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ValueError(
            f"{path.name} is missing: `git checkout {path.name}` restores the file"
        ) from None
    try:
        return parse(tomllib.loads(text), makers=MAKES)
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def make_data(root: Path, sources: Sequence[Source]) -> None:
    """Bring data/ to the pinned or newly edited state.

    An edited table of sources takes precedence over the pin.

    Raises ValueError, or a PassingError, where a source cannot be obtained, where fetched data
    differs from the pin although the table was not edited, and where data/ holds work that would be
    lost.
    """
    repair(root)
    read = own.states(own.own_files(root, sources))
    pin, origin = pins.read_pin(root), origin_now(root, sources)
    edited = pin is None or pin.origin is None or origin.edited_since(pin.origin)
    if pin and not edited and pins.matches(root, pin):
        refuse_unnoticed_edits(root)
        print(f"data/ matches data.dvc: {summary(root)}")
        return
    refuse_to_lose(root)
    if pin and not edited and (store := pins.restore(root, pin)):
        print(f"data/ is restored from {store}: {summary(root)}")
        return
    before = pins.made_here(root)
    with atomic_folder(root / ".state" / "data") as folder:
        hashes = build(root, sources, folder)
        own.refuse_changed(read, own.states(own.own_files(root, sources)))
        if pin and not edited:
            refuse_other_bytes(pin, folder, hashes)
    take(root)
    pinned = pin.origin.own if pin and pin.origin else {}
    paths = {place.at["path"]: "" for place in own.own_places(sources)}
    known = {path: pinned.get(path, "") for path in paths} | dict(origin.own)
    pins.write_pin(root, MadeFrom(origin.table, hashes, known))
    print(f"data/ is built: {summary(root)}")
    if edited:
        report_changes(root, pin, before)


def origin_now(root: Path, sources: Sequence[Source]) -> MadeFrom:
    """Return the origin of data/ by the present table.

    The user's own files are hashed where present on this machine.
    """
    return MadeFrom(table_key(sources), {}, own.hashes(own.own_files(root, sources)))


def build(root: Path, sources: Sequence[Source], folder: Path) -> dict[str, str]:
    """Build every source's files below `folder`; return source hashes.

    The result has a hash of the built files for each source.
    """
    from gptmill.sources.check import check_files  # imports torch, not needed by most runs

    made_from: dict[str, list[Source]] = {}
    hashes = {}
    digests: dict[str, str] = {}
    for source in sources:
        added = add_files(folder, source.target, obtain(root, source))
        target = f"{source.target}/"
        named = {path.removeprefix(target): value for path, value in added.items()}
        hashes[source.name] = pins.listing_hash(named)
        digests |= added
        for path in added:
            made_from.setdefault(path, []).append(source)
    try:
        check_files(folder)
    except ValueError as error:
        message = str(error).replace(str(folder), "data")
        raise ValueError(f"{message} (from {makers_of(message, made_from)})") from None
    near = near_texts(folder, digests)
    write_manifest(folder, made_from, digests, near)
    print(*near_lines(folder, near), sep="\n", end="\n" * bool(near))
    return hashes


def makers_of(message: str, made_from: Mapping[str, Sequence[Source]]) -> str:
    """Return the sources of a file or folder in `message`.

    The sources of the folder are returned where the message contains no file.
    """
    makers = [
        source
        for path, sources in made_from.items()
        if f"data/{path}" in message
        for source in sources
    ]
    every = [source for sources in made_from.values() for source in sources]
    makers = makers or [source for source in every if f"data/{source.target}" in message]
    return ", ".join(dict.fromkeys(f"source {maker.name}, {maker.places[0]}" for maker in makers))


def obtain(root: Path, source: Source) -> Made:
    """Return a source's files from the first working place.

    A place with missing or wrong files is skipped. Where no place works, raises PassingError if a
    place may work later, and ValueError otherwise.
    """
    reasons: list[str] = []
    kind: type[ValueError | PassingError] = ValueError
    home = project_of(root)  # a worktree takes files and downloads of the project
    downloads = home / ".state" / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    for place in source.places:
        is_downloaded, start = is_kept(place, downloads), time.monotonic()
        try:
            fetched = fetch(place, downloads, root=home)
            seconds = time.monotonic() - start
            files = make_files(source, place, fetched)
        except PLACE_FAILED as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            kind = PassingError if isinstance(error, PassingError) else kind
            reasons.append(str(error) if str(place) in str(error) else f"{place}: {error}")
            continue
        note = "downloaded before" if is_downloaded else f"{seconds:.1f} s"
        note = "on this machine" if place.kind == "path" else note
        print(
            f"{source.name}: {place}, {size_of(place, fetched)}, {note}: {count(len(files))}",
            flush=True,
        )
        for understood in files.notes if isinstance(files, Converted) else ():
            print(f"  {understood}")
        return files
    raise kind(
        f"source {source.name}: {'; '.join(reasons)}. Run `make data` again to continue"
        + way_without(source.name)
    )


def refuse_to_lose(root: Path) -> None:
    """Raise ValueError where data/ holds files stored nowhere else."""
    lost = pins.unsaved(root)
    if lost:
        raise ValueError(
            f"data/ holds files unknown to sources.toml and to DVC: {some(lost)}. Move the files "
            "out of data/ (an entry in sources.toml adds raw data), then run `make data`"
        )


def refuse_unnoticed_edits(root: Path) -> None:
    """Raise ValueError where data.dvc pins files changed by hand.

    `dvc repro` pins data/ without a check.
    """
    changed = pins.altered(root)
    if changed:
        raise ValueError(
            f"{some([f'data/{name}' for name in changed])}: content differs from "
            f"data/{MANIFEST}/, although data.dvc pins the content: `dvc repro` alone pins any "
            "change. `git checkout data.dvc` and `make data` restore the raw data; to change raw "
            "data, edit an entry in sources.toml"
        )


def refuse_other_bytes(pin: Pin, folder: Path, hashes: Mapping[str, str]) -> None:
    """Raise ValueError where new data differs from data.dvc.

    The message names the sources and files that differ.
    """
    if content_hash(folder) == pin.md5:
        return
    assert pin.origin is not None
    described = read_manifest(folder)["files"]
    changed = [name for name, value in hashes.items() if pin.origin.sources.get(name) != value]
    files = [name for name in described if set(described[name]["sources"]) & set(changed)]
    raise ValueError(
        f"the sources' bytes differ from data.dvc, although sources.toml is unchanged: "
        f"{some(files) or MANIFEST} (from {', '.join(changed) or 'the table'}). data/ is "
        "unchanged; to accept the new bytes, remove data.dvc and run `make data`"
    )


def take(root: Path) -> None:
    """Replace data/ with the new data.

    A kill between the two renames leaves no data/, but never a half-written data/.
    """
    old = root / ".state" / "data.old"
    shutil.rmtree(old, ignore_errors=True)
    if (root / "data").exists():
        (root / "data").rename(old)
    (root / ".state" / "data").rename(root / "data")
    shutil.rmtree(old, ignore_errors=True)


def report_changes(root: Path, pin: Pin | None, before: Mapping[str, str]) -> None:
    """Print the file changes caused by an edited table."""
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
        print(f"  and {len(lines) - SHOWN} more; data/{MANIFEST}/ lists all files")
    new = pins.read_pin(root)
    assert new is not None
    print(f"data.dvc pins {new.md5}{f', before {pin.md5}' if pin and pin.md5 != new.md5 else ''}")


def some(names: Sequence[str]) -> str:
    """List the first five names, and count the remaining names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def summary(root: Path) -> str:
    """Return the number and size of the files in data/."""
    files = pins.raw_files(root).values()
    return f"{count(len(files))}, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def count(files: int) -> str:
    """Return a number of files as text."""
    return f"{files} file{'' if files == 1 else 's'}"


def size_of(place: Place, fetched: Path) -> str:
    """Return the size of a place's files in MB."""
    files = visible_files(fetched, place.members or ("*",)) if fetched.is_dir() else [fetched]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
