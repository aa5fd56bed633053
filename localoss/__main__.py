"""`python -m localoss` is the same as `localoss`."""

import signal
import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is still being loaded, or already ends, leaves no traceback."""
    handler = signal.getsignal(signal.SIGINT)
    is_usual = handler is signal.default_int_handler  # else a host program, or a shell in the background
    if is_usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from localoss.cli import main as run

        if is_usual:
            signal.signal(signal.SIGINT, handler)
        return run()
    except KeyboardInterrupt:
        return 130
    finally:
        if is_usual:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
