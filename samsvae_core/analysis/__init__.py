"""What a bundle says: masks, loadings, shifts, genes, words."""
