"""What the doctor measures and how it judges it."""
