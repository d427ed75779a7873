"""What people see of runs: while they go on, and how they ended."""
