"""Files of every format that we read, damaged at random and read again.

`python -m tests.support.fuzz SECONDS SEED` reads damaged files for SECONDS and prints counts per
reader and outcome. A damaged file is read, or refused in a sentence that names the file; any other
exception, a hang and a memory bomb are faults.
"""
