"""Logs of runs: their schema, the directories that they are written to, and the record. No torch until a run is written."""
