"""The server behind the pages: uploads, training runs, background work and logs."""
