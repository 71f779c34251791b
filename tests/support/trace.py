"""The project files between `make pretrain` and the first backward pass.

`PYTHONPATH=src:. python -m tests.support.trace` runs the stage on tiny data in a temporary project,
and prints the call stack of the first backward pass file by file: the files to open to follow the
flow. All further project files that ran before it are listed behind the stack.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.project import Project, tiny_project

# runs in the temporary project: `make pretrain` as one process, stopped at the first backward
PROGRAM = """
import os, sys, traceback
from pathlib import Path
root = Path.cwd()
sys.path[:0] = [str(root), str(root / "src")]
ran = {}

def name_of(frame):
    path = Path(frame.f_code.co_filename)
    inside = path.is_relative_to(root) and path.suffix == ".py"
    return str(path.relative_to(root)) if inside and frame.f_code.co_name != "<module>" else None

def note(frame, event, argument):
    if event == "call" and (name := name_of(frame)):
        ran.setdefault(name)

import torch

def backward(tensor, *arguments, **options):
    sys.setprofile(None)
    frames = [name_of(frame) for frame, _ in traceback.walk_stack(sys._getframe(1))]
    stack = list(dict.fromkeys(name for name in reversed(frames) if name))
    print("\\n".join(["STACK", *stack, "RAN", *(name for name in ran if name not in stack)]))
    sys.stdout.flush()
    os._exit(0)

def run_stage(program, words):
    from tasks.__main__ import main
    sys.exit(main([words[-1]]))

torch.Tensor.backward = backward
os.execv = run_stage
sys.setprofile(note)
from flows.__main__ import main
main(["stage", "pretrain"])
"""


def trace(project: Project) -> tuple[list[str], list[str]]:
    """Return the files on the stack of the first backward pass, and the further files that ran."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=project.root,
        env={**project.environment(), "PYTHONPATH": os.pathsep.join(["src", "."])},
        capture_output=True,
        text=True,
    )
    lines = result.stdout.splitlines()
    assert "STACK" in lines, result.stdout + result.stderr
    stack, ran = lines.index("STACK"), lines.index("RAN")
    return lines[stack + 1 : ran], lines[ran + 1 :]


def main() -> None:
    """Print the trace of this tree."""
    with tempfile.TemporaryDirectory() as folder:
        project = tiny_project(Path(folder))
        result = project.run("dvc", "repro", "sample")
        assert result.returncode == 0, result.stderr
        stack, ran = trace(project)
    print(f"{len(stack)} files from `make pretrain` to the first backward pass:")
    print("\n".join(f"  {name}" for name in ["Makefile", "dvc.yaml", *stack]))
    print(f"{len(ran)} further files ran before it (checks, records, loading):")
    print("\n".join(f"  {name}" for name in ran))


if __name__ == "__main__":
    main()
