"""From files of images to tensors of the working size."""
