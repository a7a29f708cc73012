"""In which shares and in which order a run takes the rows of its data."""
