"""From a file to a bundle."""
