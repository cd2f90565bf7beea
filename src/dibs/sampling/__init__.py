"""The name that command lines of vLLM servers knew before ``dibs.WeightLoader``."""
