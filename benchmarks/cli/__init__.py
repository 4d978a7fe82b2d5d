"""The verbs of the command line, one file for each group; nothing else parses their arguments."""
