"""Whether an estimate of log Z can be trusted: its arguments, what its chains show, and where no chain went."""
