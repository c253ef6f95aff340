"""A vision-language model learns to act from a small expert."""
