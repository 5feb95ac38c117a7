"""What is wrong with a machine (doctor) and with a job that ended badly (triage). No MindSpore, no NumPy."""
