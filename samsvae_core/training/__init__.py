"""Training: the loop, its run folder, and several processes."""
