"""Names of genes, collections of gene sets, and tests of them."""
