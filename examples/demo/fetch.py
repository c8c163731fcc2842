"""`python -m examples.demo.fetch ID`: bring a model from the Hub and print its folder."""

from __future__ import annotations

import sys

from huggingface_hub import snapshot_download

if __name__ == "__main__":
    print(snapshot_download(sys.argv[1]))
