"""What frozen features are worth: kNN, linear probe, effective rank."""
