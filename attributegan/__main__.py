"""``python -m attributegan COMMAND``, and ``--version``."""

import sys

from attributegan import __version__, commands

if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print(f"attributegan {__version__}")
    else:
        sys.exit(commands.main())
