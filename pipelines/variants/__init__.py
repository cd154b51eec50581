"""Variants of the champion: its network in fewer bits or of lower rank, judged and released."""
