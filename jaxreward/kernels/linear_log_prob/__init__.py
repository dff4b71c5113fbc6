"""Log-probability, entropy and normaliser of a linear head, without writing its logits."""
