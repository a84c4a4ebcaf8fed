"""A network cut in two before one of its layers."""
