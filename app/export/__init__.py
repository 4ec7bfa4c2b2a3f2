"""Reports, figures and tables as files."""
