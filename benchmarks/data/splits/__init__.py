"""Which images are labelled."""
