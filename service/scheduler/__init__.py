"""The queue in front of the device: admission, order, batches. Independent of HTTP and tensors."""
