"""Pure functions from logged frames to frames: estimates, intervals, theory and verdicts."""
