"""See `vllm/__init__.pyi`."""
