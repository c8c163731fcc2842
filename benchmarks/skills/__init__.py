"""Skills that a model can learn one after another: real ones where they can be had, and rule-made ones."""
