"""Which estimator serves which layer and which habit of code: one declaration, held against what is measured.

`networks` has a network for each row of the table, `table` declares each cell, `outcomes` says what happens in it, and
``python -m verification.support`` (`make matrix`) checks them all and writes ``docs/support.md``.
"""
