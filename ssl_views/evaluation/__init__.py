"""What frozen features are worth: kNN, probes, spectrum, and pictures of them."""
