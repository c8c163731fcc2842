"""The command line, run in this process on folders that models wrote."""
