"""Datasets, splits, the image cache, batches and views.

Nothing is imported here: decoding processes start with `benchmarks.data.decode` alone.
"""
