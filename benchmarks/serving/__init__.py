"""ReFT adapters and vLLM's own multi-LoRA on one base, beside that base without any."""
