"""The command line ``loops-async``; click and rich come with the extra ``cli``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line with the arguments of the process, and exit."""
    # Replace characters that the terminal cannot encode instead of failing on them.
    getattr(sys.stdout, "reconfigure", _ignore)(errors="replace")
    try:
        from ._main import cli

        cli()
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("click", "rich"):
            raise
    except KeyboardInterrupt:  # before click handles it
        sys.exit(130)
    sys.stderr.write("loops-async needs click and rich: " + _INSTALL + "\n")
    sys.exit(2)


_INSTALL = (
    "install the extra 'cli': pip install 'loops-async[cli]', "
    "or pip install '.[cli]' in a clone"
)


def _ignore(**_: str) -> None:
    """Stand in for `reconfigure` where the stream has no such method."""
