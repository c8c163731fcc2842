"""The main job on a real small language model: train, save, push, load elsewhere, generate."""
