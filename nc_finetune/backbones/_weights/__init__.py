"""Pre-trained weights, wherever they come from."""
