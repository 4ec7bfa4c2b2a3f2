"""Gene names, collections of gene sets, and tests for them."""
