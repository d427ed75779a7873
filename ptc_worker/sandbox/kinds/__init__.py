"""The kinds of sandbox: one file each, known to the registry alone."""
