"""Instructions that a model makes of some that people wrote."""
