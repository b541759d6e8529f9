"""Parts of attributegan-sample."""
