"""Commands that measure speed, memory and quality, and print tables."""
