"""Figures, a file for each kind; `results.plots` calls them with what it has collected."""
