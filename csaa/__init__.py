"""CSAA, context-based semantic-aware alignment: the main method of the benchmark."""
