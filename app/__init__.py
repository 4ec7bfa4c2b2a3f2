"""The dashboard over samsvae_core."""
