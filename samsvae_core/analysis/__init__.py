"""Results read from a bundle: masks, loadings, predicted shifts, gene and model cards."""
