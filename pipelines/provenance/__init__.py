"""What a version was made from, who signed it, and what lies beside it."""
