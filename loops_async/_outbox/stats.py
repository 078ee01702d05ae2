"""The counters of an outbox."""

import attrs


@attrs.frozen(kw_only=True)
class OutboxStats:
    """The state and the counters of an open outbox.

    Attributes:
        pending: Events in the file that are still to be sent.
        retrying: Pending events whose latest attempt failed.
        rejected: Events in the file that Loops refused.
        unknown: Events in the file whose outcome is unknown.
        accepted: Events that Loops accepted since the outbox was opened.
        duplicates: Events sent since then that Loops already had, because the response
            to an earlier attempt was lost.
        paused: The reason why sending is paused, such as a refused API key; None if it
            is not. (During an outage the client holds all requests and the outbox is
            not paused: see `ClientStats.outage`.)
    """

    __module__ = "loops_async"

    pending: int
    retrying: int
    rejected: int
    unknown: int
    accepted: int
    duplicates: int
    paused: str | None
