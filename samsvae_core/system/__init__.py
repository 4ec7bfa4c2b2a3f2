"""Whole files, a cache, and the processors and memory of the machine."""
