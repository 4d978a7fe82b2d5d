"""Examinations of the harness: chaos, invariance."""
