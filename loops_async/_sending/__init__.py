"""The one way of an event to Loops.

- `sender`: the engine that a client, its outboxes and its backfills share.
- `delivery`: one request on its way: the loop over its attempts.
- `tries`, `bulk_tries`: when the next attempt may start, and when it is the last.
- `admission`: the circuit breaker, the limiter and the connections as one gate.
- `bulk`: many events side by side; `intake` pulls them, `ordering` keeps each
  contact's in order, `bulk_run` is what their attempts share.
- `outcomes`, `stats`: the results.
"""
