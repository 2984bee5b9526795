"""How Hugging Face tensors lie in Megatron shards, and everything that moves weights by that table."""
