"""Files of weights: safetensors, the released folder layout, training checkpoints (NumPy only, no MindSpore)."""
