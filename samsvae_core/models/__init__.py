"""The SAMS-VAE, its variants, their bounds, and data drawn from one."""
