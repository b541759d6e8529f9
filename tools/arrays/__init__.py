"""The commands that run as arrays: how each divides its work into tasks, and how the results are merged."""
