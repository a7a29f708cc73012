"""How gradients change weights: one file an optimizer, with its settings."""
