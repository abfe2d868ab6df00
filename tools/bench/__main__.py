"""`python -m kaun.tools.bench`: the same as `kaun bench`."""

import sys

from kaun.tools.bench import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="python -m kaun.tools.bench"))
