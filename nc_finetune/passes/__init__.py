"""Passes of one's own through data, beside those of Lightning's loops."""
