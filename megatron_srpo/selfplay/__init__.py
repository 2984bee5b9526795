"""Self-play: R-Diverse and its parent R-Zero; the loop called for two policies in turn."""
