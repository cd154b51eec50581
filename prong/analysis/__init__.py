"""Analysis of a network: Fisher matrix, whiteness and plots; training does not need it."""
