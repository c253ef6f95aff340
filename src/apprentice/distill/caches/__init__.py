"""What is computed once for each frame of a dataset: image tokens, expert latents, keys and values, pictures."""
