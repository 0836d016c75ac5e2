"""`scripts/bench`: what KitchenSink does beside what else could do it, in one run, on hosts of their own.

`report` knows what a figure is and how it is told; `files`, `remote` and `calls` measure; `inside` has the programs
that run within a host. The hosts and nodes are those of the tests (`tests/harness`).
"""
