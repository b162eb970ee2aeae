"""Training and evaluation of the shipped checkpoint: programs and the objects that they render."""
