"""Parts that at least two systems use: tensors in, tensors out."""
