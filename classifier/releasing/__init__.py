"""New versions: compared, shadowed, promoted and rolled back, and what is noted of that."""
