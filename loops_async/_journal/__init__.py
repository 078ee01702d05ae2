"""A file of events, which the outbox and the backfill share.

- `database`: one SQLite file and its thread; the only module that knows sqlite3.
- `journal`: the events in the file, and the state of each.
- `records`: the rows and the states.
- `sender`: sends the rows, and records what became of each.
"""
