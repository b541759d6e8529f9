"""Which tile comes when."""
