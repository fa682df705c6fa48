"""New versions: compared, shadowed, promoted and rolled back."""
