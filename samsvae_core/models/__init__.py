"""The SAMS-VAE, its variants and bounds, and simulated data."""
