"""What methods are built from: heads, prompts, pseudo-labelling."""
