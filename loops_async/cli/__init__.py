"""The command line ``loops-async``; click and rich come with the extra ``cli``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line with the arguments of the process, and exit."""
    # A character that the terminal cannot show must not end a run.
    getattr(sys.stdout, "reconfigure", _nothing)(errors="replace")
    try:
        from ._main import cli

        cli()
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("click", "rich"):
            raise
    except KeyboardInterrupt:  # before click was there to see it
        sys.exit(130)
    sys.stderr.write("loops-async needs click and rich: " + _INSTALL + "\n")
    sys.exit(2)


_INSTALL = "pip install 'loops-async[cli]'"


def _nothing(**_: str) -> None:
    """Stand in for `reconfigure` where the stream has none."""
