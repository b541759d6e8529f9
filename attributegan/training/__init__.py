"""One training: the loop, its phases and losses, its random numbers, its average."""
