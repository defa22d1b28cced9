"""Verdicts: the protocol as data, one number per seed from the logs, the tests, their power, and what all comes to.

`record` judges the logs of a profile; `matrix` makes one cell of all comparisons of a question in a setting, and `summary` one
line of all settings of a competitor.
"""
