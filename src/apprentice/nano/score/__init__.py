"""What the built-in VLM sees and answers in scenes that it was not trained on."""
