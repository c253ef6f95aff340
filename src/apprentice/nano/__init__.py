"""How the built-in VLM is made: scenes, questions, pre-training, its score; and how a VLM is built of two models."""
