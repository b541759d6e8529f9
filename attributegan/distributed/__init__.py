"""Processes: how they start, meet, share a network's state, and notice that one has failed."""
