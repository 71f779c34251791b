"""`python -m tasks.processes.leash COMMAND ...`: become COMMAND, and end when the parent ends.

A process that must not outlive its starter is started through this: the setting is made
here, after the fork and before the exec, where no other thread can be in the way.
"""

import os
import sys

from tasks.processes.process import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])
