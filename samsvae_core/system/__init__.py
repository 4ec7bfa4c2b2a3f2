"""What the machine offers: whole files, a cache, processors and memory."""
