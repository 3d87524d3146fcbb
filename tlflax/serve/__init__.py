"""A trained classifier as a small HTTP service."""
