"""The few names of ComfyUI's node API that the pack uses, for the type checker alone: ComfyUI cannot be installed beside it."""

from . import io as io

class ComfyExtension:
    async def get_node_list(self) -> list[type[io.ComfyNode]]: ...
