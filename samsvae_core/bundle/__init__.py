"""Bundles, a trained model with its tables: their files, checks and archives."""
