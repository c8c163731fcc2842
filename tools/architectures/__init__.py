"""Tiny models of every architecture, and the table of blocks that is made with them."""
