"""Caches before pools: how they come and go, their settings, what they mean. Pure."""
