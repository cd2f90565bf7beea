"""A room kept for ``dibs.sampling.vllm_worker``, which command lines of vLLM servers may name."""
