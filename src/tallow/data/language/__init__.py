"""What language texts are in."""
