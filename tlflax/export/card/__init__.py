"""The model card of an exported file, in the format of the Hugging Face Hub."""
