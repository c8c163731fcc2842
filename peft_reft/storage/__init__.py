"""Adapters on disk and on the Hub: identity of the base, what PEFT's verbs do, an atomic save, push, pull, convert."""
