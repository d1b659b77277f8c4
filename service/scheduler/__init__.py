"""The queue in front of the device: admission, order, batches. Knows neither HTTP nor tensors."""
