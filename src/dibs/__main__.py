"""``dibs``, also as ``python -m dibs``: the version at once, all else by the command line."""

import sys

from dibs import __version__


def main() -> int:
    """Run the command line; returns the exit status."""
    if sys.argv[1:] == ["--version"]:
        # The command line takes more than a second to import.
        sys.stdout.write(f"dibs {__version__}\n")
        return 0
    try:
        from dibs.cli import main as run

        return run()
    except KeyboardInterrupt:  # while it is imported, and at its very end
        sys.stderr.write("dibs: interrupted\n")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
