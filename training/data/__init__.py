"""Data sets: images, labels and class names."""
