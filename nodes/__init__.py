"""The nodes of the pack, one file per stage; each unpacks, validates, makes one core call and wraps."""

if __name__ == "nodes":
    raise ImportError("This is the pack's own folder 'nodes', not ComfyUI's: take the pack's root off sys.path.")

from .compat import ComfyExtension, io, register_folders
from .registry import NODES


class MicroDreamerExtension(ComfyExtension):
    """The extension from which ComfyUI gets the list of nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_folders()
        return list(NODES)
