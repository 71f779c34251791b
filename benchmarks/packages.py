"""Packages of the benchmarks: the peers', and those of a machine without a network.

A bare GPU machine has Python, torch and numpy. `python benchmarks/packages.py` downloads all other
packages that the benchmarks and the GPU tests import as wheels for the GPU machine's Python into
.state/bench/wheels, to carry along; benchmarks/gpu.py unpacks the wheels there.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / ".state" / "bench"
WHEELS = OUT / "wheels"
INSTALLED = OUT / "packages" / f"{sys.version_info.major}.{sys.version_info.minor}"

BOOK_CACHED = "book with a cache"
# packages to install for each peer, because our own environment lacks them
PACKAGES = {
    "book": ["llms-from-scratch==1.0.19"],
    BOOK_CACHED: ["llms-from-scratch==1.0.14"],  # the last version with a working GPT-2 cache
    "litgpt": [
        "litgpt==0.5.13",
        "lightning<2.7",
        "pytorch-lightning<2.7",
        "lightning-utilities",
        "torchmetrics",
        "jsonargparse",
        "huggingface-hub<1",
        "transformers<5",
        "tokenizers<0.23",
    ],
    "transformers": [],
}
PEERS = ["book", "litgpt", "transformers"]
# what torch and numpy do not bring along: the library's, pytest's, and those of transformers
COMMON = [
    *("jinja2", "markupsafe", "regex", "safetensors", "tiktoken", "tokenizers"),
    *("annotated-types", "pydantic", "pydantic-core", "typing-inspection"),
    *("execnet", "iniconfig", "packaging", "pluggy", "pygments"),
    *("psutil", "pytest", "pytest-timeout", "pytest-xdist"),
    *("anyio", "certifi", "charset-normalizer", "click", "filelock", "fsspec", "h11"),
    *("hf-xet", "httpcore2", "httpx2", "huggingface_hub", "idna", "pyyaml", "requests", "tqdm"),
    *("transformers", "truststore", "typing_extensions", "urllib3"),
]
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]
LARGEST_MB = 60


def installed(peers: list[str]) -> list[str]:
    """Install the peers' packages once, below .state/bench/.

    Return the peers with installed packages.
    """
    available = []
    for name in peers:
        fault = _install(name)
        if fault is None:
            available.append(name)
        else:
            print(f"left out: {name} could not be installed ({fault})")
    return available


def folder(name: str) -> Path:
    """Return the folder of a peer's packages, or of the common ones."""
    return INSTALLED / name.replace(" ", "-")


def _install(peer: str) -> str | None:
    """Install a peer's packages; return the error message, or None."""
    marker = folder(peer).with_suffix(".done")
    if not PACKAGES[peer]:
        return None if importlib.util.find_spec(peer) else f"there is no package {peer}"
    if marker.exists():
        return None
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    words = [*command, "--target", str(folder(peer)), *PACKAGES[peer]]
    result = subprocess.run(words, capture_output=True, text=True)
    if result.returncode:
        return (result.stderr.strip().splitlines() or ["pip ended without a message"])[-1]
    marker.touch()
    return None


def pack(python: str, wheels: Path) -> int:
    """Download all wheels for a Python version; return their size in bytes."""
    shutil.rmtree(wheels, ignore_errors=True)
    pinned = ["--constraint", str(ROOT / "configs" / "constraints.txt")]
    for name, wanted in {**PACKAGES, "common": COMMON}.items():
        if not wanted:
            continue
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        command += ["--dest", str(wheels / name.replace(" ", "-"))]
        subprocess.run([*command, *(pinned if name == "common" else []), *wanted], check=True)
    (wheels / "python").write_text(python)
    return sum(path.stat().st_size for path in wheels.rglob("*.whl"))


def unpack(wheels: Path) -> str:
    """Unpack the wheels for this Python; return what was done, in a sentence.

    The peers with unpacked wheels count as installed.
    """
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not (wheels / "python").exists():
        return f"no wheels in {wheels}: only the packages of this Python are used"
    packed = (wheels / "python").read_text()
    if packed != own:
        return f"the wheels in {wheels} are for Python {packed}, this is {own}: not used"
    for source in sorted(path for path in wheels.iterdir() if path.is_dir()):
        target = folder(source.name)
        shutil.rmtree(target, ignore_errors=True)
        for wheel in source.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
        target.with_suffix(".done").touch()
    return f"{len(list(wheels.rglob('*.whl')))} wheels unpacked"


def main() -> None:
    """Pack the wheels; fail above the size that can be carried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python-version", default="3.12", help="of the GPU machine")
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="folder for the wheels")
    options = parser.parse_args()
    size = pack(options.python_version, options.wheels) / 1e6
    print(f"{options.wheels}: {len(list(options.wheels.rglob('*.whl')))} wheels, {size:.1f} MB")
    if size > LARGEST_MB:
        raise SystemExit(f"more than {LARGEST_MB} MB: too large to carry along")


if __name__ == "__main__":
    main()
