"""What open_clip's models are made of."""
