"""Alias of `benchmarks.launch.worker`: plan files and jobs in a queue name the module's old place."""

import sys

from benchmarks.launch.worker import main

if __name__ == "__main__":
    sys.exit(main())
