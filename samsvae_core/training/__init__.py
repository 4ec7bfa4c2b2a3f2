"""From cells to a trained model: the loop, its folder, several processes."""
