"""Latents and levels into tiles."""
