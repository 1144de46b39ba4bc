"""Talk between ranks, and everything that wraps a model from outside. The only room that imports `torch.distributed`."""
