"""The outbox: events that are durable before they are sent.

- `outbox`: the public class.
- `session`: an outbox from its opening to its closing.
- `capacity`: the puts that wait while an outbox is full.
- `per_worker`: one file for each worker process of an application.
- `stats`: the public statistics.
"""
