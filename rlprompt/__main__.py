"""`python -m rlprompt` is the command line."""

import sys

from rlprompt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
