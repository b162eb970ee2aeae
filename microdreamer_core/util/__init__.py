"""Small helpers shared by all packages: devices, seeds, settings, images, threads."""
