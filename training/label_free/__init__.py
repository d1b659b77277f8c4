"""Methods of phase 2 that learn from unlabelled images and class names."""
