"""Any Hugging Face vision-language model behind one interface."""
