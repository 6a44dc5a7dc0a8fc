"""Arrow Flight and Flight SQL: translates to the warehouse, nothing else."""
