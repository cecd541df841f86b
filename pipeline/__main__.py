"""`python -m pipeline`."""
# PYTHON_ARGCOMPLETE_OK: what argcomplete's global completion looks for.

from pipeline.commands.cli import run

if __name__ == "__main__":  # worker processes import this module too
    run()
