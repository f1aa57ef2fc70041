"""Machine checks of what the book claims. `words` computes with matrices of any size; one module a chapter states."""
