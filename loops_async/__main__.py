"""``python -m loops_async`` is ``loops-async``."""

from .cli import main

main()
