"""Pure: influence vectors in; a verdict, row weights or the next candidates out. NumPy and HiGHS, no files."""
