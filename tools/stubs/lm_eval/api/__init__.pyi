"""See `lm_eval/__init__.pyi`."""
