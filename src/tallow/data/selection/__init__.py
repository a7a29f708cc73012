"""Which documents a corpus keeps: those like a target, in a band of quality, or different from each other."""
