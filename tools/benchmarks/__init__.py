"""What attributegan-bench measures."""
