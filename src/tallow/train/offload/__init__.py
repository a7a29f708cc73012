"""What training keeps elsewhere than in its memory, and brings back when it is wanted."""
