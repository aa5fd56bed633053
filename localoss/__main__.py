"""`python -m localoss` is the same as `localoss`."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is still being loaded ends it without a traceback."""
    try:
        from localoss.cli import main as run
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
