"""A trained model with all its tables: written, checked, opened."""
