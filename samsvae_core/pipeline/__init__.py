"""From a data file to a bundle: training, its tables, and sweeps."""
