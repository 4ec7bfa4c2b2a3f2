"""Cells with their counts and dosages, and how they are read from files."""
