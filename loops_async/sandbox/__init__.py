"""A Loops of your own: a faithful, stateful, local imitation of the Loops API.

    async with Sandbox() as sandbox:
        ...  # any Loops client, with sandbox.url and sandbox.api_key
        sandbox.assert_event("signup", email="ada@example.com")

It knows nothing of this SDK's client: it is written from the API's documentation,
for clients in any language.
"""

from ._behaviour import Behaviour
from ._faults import FAULTS
from ._records import Counts, SandboxContact, SandboxEvent, SandboxRequest
from ._sandbox import Sandbox

__all__ = [
    "FAULTS",
    "Behaviour",
    "Counts",
    "Sandbox",
    "SandboxContact",
    "SandboxEvent",
    "SandboxRequest",
]
