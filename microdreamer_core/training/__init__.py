"""Training and evaluation of the shipped checkpoint: programs, and the procedural objects that they render."""
