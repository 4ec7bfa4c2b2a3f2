"""The command line: options that verbs share, the verbs, and what becomes of a mistake."""
