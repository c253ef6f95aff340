"""What a family of VLMs needs that no property of its model or of its processor tells.

Keys are `model_type` in the model's configuration. See docs/adding-a-vlm.md.
"""

# The token type of text that attends to what stands before it alone. Where images attend both ways (Gemma 3), 0 is text
# and 1 is an image; PaliGemma's whole prompt attends both ways: there 0 is the prompt and 1 what follows it.
CAUSAL_TOKEN_TYPE = {"paligemma": 1}
