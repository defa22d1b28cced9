"""Training with instruments: one run from its configuration to its directory of logs."""
