"""What is run: the command line, run specs, planning, data, the trainer and the evaluation."""
