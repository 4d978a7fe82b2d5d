"""What is run: the command line, run specs, planning, data, the trainer and the evaluation."""

from methods import registry

# A checkout that is not installed has no entry points. This names the module and imports nothing.
registry.declare("csaa", "csaa.method")
