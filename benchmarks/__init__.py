"""Speed and memory of labkit, each against the thing it replaces. Run by `make bench`; never part of the tests.

measure.py     one instrument for both sides: a whole process tree, its wall seconds and its peak memory; results.json
table.py       medians, ratios, verdicts, and README.md, which is generated
evaluating.py, quantizing.py, serving.py, running.py, growing.py    the benchmarks; gpu.py needs a GPU
sides/         what is timed: scripts as they are written without labkit, and `ours.py`
"""
