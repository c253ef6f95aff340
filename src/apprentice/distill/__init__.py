"""Align and fine-tune: from a frozen expert and a frozen VLM to a policy."""
