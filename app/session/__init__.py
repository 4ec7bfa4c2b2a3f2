"""What one visitor's pages share and remember."""
