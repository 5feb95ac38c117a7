"""Tools for checkpoints. convert, inspect, diff and verify need NumPy only; precision_card needs MindSpore."""
