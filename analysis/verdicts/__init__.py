"""Verdicts: the protocol as data, one number per seed from the logs, the tests, the power, and a summary over data sets."""
