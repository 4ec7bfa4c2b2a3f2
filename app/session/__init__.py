"""What the pages remember about one visitor: their choices, files, views and session."""
