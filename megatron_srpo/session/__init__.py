"""One run on one rank: its parts put together, and the steps that the loop names."""
