"""Lines to beat: naive ones computed here, other methods quoted with where the number comes from."""
