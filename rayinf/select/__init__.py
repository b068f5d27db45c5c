"""Which rows to choose: scores in, rows out. No files, no Ray."""
