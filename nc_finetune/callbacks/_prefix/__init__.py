"""Filling and finding the cache of a frozen prefix."""
