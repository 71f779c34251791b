"""`python -m gptmill`, the same as the console script `gptmill`."""

import sys

from gptmill.cli.frame import main

if __name__ == "__main__":
    sys.exit(main())
