"""From files on a disk to a batch on a device: datasets, splits, the image cache, views.

Nothing is imported here: decoding processes start with `benchmarks.data.cache.decode` alone.
"""
