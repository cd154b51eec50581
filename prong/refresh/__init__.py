"""A reparametrisation: from statistics to a new c and U, and what has to follow."""
