"""The backfill: the events of files, each sent once.

- `backfill`: the run.
- `input`: reads CSV and JSON Lines files, row by row.
- `journal`: where each event comes from, and what became of it.
- `summary`, `preview`: what a run would send, before it sends.
- `report`, `rejects`: what became of the rows.
"""
