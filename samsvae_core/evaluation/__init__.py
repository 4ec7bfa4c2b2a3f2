"""Evaluation of models on cells they were not trained on."""
