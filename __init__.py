"""MicroDreamer as a ComfyUI pack: the host reads these two names and nothing else."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # noqa: ANN201 - the class is imported with the host
    """The pack's nodes, imported only when a host asks."""
    from .nodes import MicroDreamerExtension

    return MicroDreamerExtension()
