"""Many images to assets: what to make (``items``), making one (``make``), sharing the work (``share``), the page (``page``).

Workers are processes of this machine, tasks of a Ray cluster (``cluster``), or ComfyUI servers (``comfy``).
"""
