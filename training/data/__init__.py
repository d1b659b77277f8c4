"""Where images, labels and class names come from."""
