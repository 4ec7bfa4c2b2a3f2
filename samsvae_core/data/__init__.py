"""Cells with their dosages, and how they are read from files."""
