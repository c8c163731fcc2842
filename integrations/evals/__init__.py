"""Metrics of what a model generates, in any trainer and by themselves."""

from .metric import GenerationMetric, evaluate_generations

__all__ = ["GenerationMetric", "evaluate_generations"]
