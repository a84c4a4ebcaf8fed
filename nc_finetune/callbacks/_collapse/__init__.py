"""The engine of the callbacks that measure collapse."""
