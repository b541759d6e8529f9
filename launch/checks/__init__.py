"""Checks of launch/doctor.py: what it collects and measures, and what counts as a problem."""
