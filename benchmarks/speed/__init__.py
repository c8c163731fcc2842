"""What ReFT costs beside a frozen base, PEFT's LoRA, pyreft and adapters: `python -m benchmarks.speed`."""
