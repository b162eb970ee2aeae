"""Reading and writing of files: images, splats, saved states, meshes, videos."""
