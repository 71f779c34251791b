"""Launcher of a command that must not outlive the parent.

`python -m tasks.processes.leash COMMAND ...` becomes COMMAND, and ends when the parent ends.
The module requests the signal on the parent's death after the fork and before the exec, while
the process has a single thread and nothing can interfere.
"""

import os
import sys

from tasks.processes.process import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])
