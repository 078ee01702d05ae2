"""Run ``loops-async`` as ``python -m loops_async``."""

from .cli import main

main()
