"""The code location: experiment files, definitions and the command line."""
