"""Speed and memory of labkit, each against the thing it replaces. Run by `make bench`; never part of the tests.

measure.py     one instrument for both sides: a whole process tree, its wall seconds and its peak memory
results.py     what was measured, as data; results.json
table.py       medians, ratios, verdicts
readme.py      README.md, generated from results.json
evaluating.py, quantizing.py, starting.py    the benchmarks
sides/         the scripts that are timed, and those that make what they work on
"""
