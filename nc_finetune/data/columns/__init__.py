"""What the columns of tables say: labels, files of images, splits."""
