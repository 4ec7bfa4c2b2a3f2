"""Every figure, from tables to Plotly."""
