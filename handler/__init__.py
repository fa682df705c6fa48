"""The TorchServe adapter: TorchServe's requests in, the classifier's answers out."""
