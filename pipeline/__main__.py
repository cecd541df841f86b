"""`python -m pipeline`."""
# PYTHON_ARGCOMPLETE_OK: what argcomplete's global completion looks for.

import sys

from pipeline.cli import main

if __name__ == "__main__":  # worker processes import this module too
    sys.exit(main())
