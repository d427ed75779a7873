"""`ptc-enqueue`: plans go in at the terminal, files and results come out."""
