"""The wide model: a small one, pretrained here on text that packages ship, so that hundreds of runs fit on a CPU."""
