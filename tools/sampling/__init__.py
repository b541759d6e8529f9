"""The parts of attributegan-sample."""
