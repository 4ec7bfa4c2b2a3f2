"""What predictions are worth on cells not trained on."""
