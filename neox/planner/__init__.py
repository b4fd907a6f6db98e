"""What a run will cost, by pure arithmetic and without torch."""
