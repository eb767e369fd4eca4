"""Studies: grids of runs, what they cost and what they reach."""
