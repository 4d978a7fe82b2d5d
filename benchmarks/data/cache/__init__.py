"""Decoded, resized images in a memory map.

Nothing is imported here: decoding processes start with `benchmarks.data.cache.decode` alone.
"""
