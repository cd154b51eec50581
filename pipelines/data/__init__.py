"""Real images, from their source to four splits with a data card."""
