"""Files: pictures, splats, states, meshes, films."""
