"""Parts of the script that makes the small Qwen3 carried in `examples/models/qwen3-tiny`."""
