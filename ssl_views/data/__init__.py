"""Images: sources, decoding, and batches of views."""
