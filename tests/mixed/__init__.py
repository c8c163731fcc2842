"""A LoRA and a ReFT in one model."""
