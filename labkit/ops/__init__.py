"""The instructor's tools: run the labs and report, show results, examine this machine. `labkit --help` starts here."""
