"""The program of the process that runs xatlas: meshes from stdin, their charts to stdout, as .npz archives.

xatlas can crash or never end on meshes that are not whole, which would end ComfyUI; and it blocks all of Python's threads.
"""

import io
import os
import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules have common names
    import numpy as np
    import xatlas

    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between
    given = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    atlas, count = xatlas.Atlas(), int(given["count"])
    for i in range(count):
        atlas.add_mesh(given[f"vertices{i}"], given[f"faces{i}"])
    options = xatlas.PackOptions()
    options.resolution, options.padding, options.bilinear = int(given["resolution"]), int(given["padding"]), True
    atlas.generate(xatlas.ChartOptions(), options)
    found = io.BytesIO()
    np.savez(found, **{f"{name}{i}": value for i in range(count) for name, value in zip("mfu", atlas[i], strict=True)})
    output.write(found.getvalue())
    output.close()
