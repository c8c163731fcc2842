"""`python -m benchmarks.wide`: pretrain the wide model, or go on with it."""

from __future__ import annotations

import argparse
import json

import torch

from .pretrain import STEPS, pretrain

__all__ = ["main"]


def main() -> None:
    """Train, keep, and print what came of it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=90, help="of this process's time, in this call")
    options.add_argument("--steps", type=int, default=STEPS, help="in all; the learning rate falls towards them")
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(pretrain(given.minutes, given.steps), indent=1))


if __name__ == "__main__":
    main()
