"""What several tests need: hosts, checkpoints, GPUs and renderers to test against; pytest puts it on the path as helpers."""
