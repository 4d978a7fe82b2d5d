"""Weak, strong and test views."""
