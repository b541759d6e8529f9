"""``python -m attributegan COMMAND``."""

import sys

from attributegan.commands import main

if __name__ == "__main__":
    sys.exit(main())
