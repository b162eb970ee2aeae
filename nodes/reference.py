"""The reference image and conditioning on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.io.pictures import SUFFIXES, read_picture
from ..microdreamer_core.reference import Reference, check_elevation, prepare_reference
from . import types
from .compat import ADVANCED, io, load_to_device, schema
from .files import known_file, list_files, modification_time, validate_file
from .types import EXAMPLES, Conditioned, LoadedModel, core_call, expect

MASK_SHOWS = ("auto", "object", "background")


class ExamplePicture(io.ComfyNode):
    """Load an example image that comes with the pack, or the user's own."""

    TITLE = "MicroDreamer Picture"

    @classmethod
    def define_schema(cls) -> io.Schema:
        own = [name for name in list_files(*SUFFIXES) if name.startswith("input/")]
        return schema(
            node_id="MicroDreamerExamplePicture",
            aliases=("example picture", "demo", "sample image", "load image"),
            display_name=cls.TITLE,
            category="MicroDreamer/Input",
            description="A picture of your own, dropped on the node or chosen with its button, or an example that comes with "
            "the pack.",
            inputs=[
                io.Combo.Input(
                    "picture",
                    options=[*example_pictures(), *own],
                    default="bird",
                    tooltip="The examples are toys seen from 5 degrees above: the elevation for Condition on Image.",
                )
            ],
            outputs=[
                io.Image.Output(id="image_out", display_name="image", tooltip="The picture."),
                io.Mask.Output(
                    id="mask_out",
                    display_name="mask",
                    tooltip="Coverage of the object; white is object. Empty if the picture has no transparency; a plain "
                    "background is then removed.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, picture: str) -> bool | str:
        """Accept files that are newer than the list shown, too."""
        return picture in example_pictures() or validate_file(picture, *SUFFIXES)

    @classmethod
    def fingerprint_inputs(cls, picture: str) -> float:
        """Make ComfyUI read the file again if it has changed."""
        return 0.0 if picture in example_pictures() else modification_time(picture)

    @classmethod
    @core_call
    def execute(cls, picture: str) -> io.NodeOutput:
        if picture in example_pictures():
            path = EXAMPLES / f"{picture}.png"
        elif "/" in picture:
            path = known_file(picture, *SUFFIXES)
        else:
            raise InputError(f"There is no example {picture!r}; choose one of {', '.join(example_pictures())}.")
        pixels = read_picture(path)
        opaque = pixels.shape[2] == 3 or bool((pixels[..., 3] == 1).all())
        mask = torch.zeros(pixels.shape[:2]) if opaque else pixels[..., 3].clone()
        return io.NodeOutput(pixels[None, ..., :3].clone(), mask[None])


def example_pictures() -> list[str]:
    """List the names of the images that come with the pack."""
    return sorted(path.stem for path in EXAMPLES.glob("*.png"))


class PrepareReference(io.ComfyNode):
    """Cut the object out of an image and centre it on white."""

    TITLE = "Prepare Reference"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerPrepareReference",
            aliases=("cut out", "center object", "remove background"),
            display_name=cls.TITLE,
            category="MicroDreamer/Input",
            description="Cuts the object out of a picture and centres it on white, framed as in the model's training. A batch "
            "of pictures becomes a list: everything after this node runs once for each of them.",
            inputs=[
                types.Model.Input("model", tooltip="The model that will use the picture; it decides size and framing."),
                io.Image.Input("image", tooltip="A picture of one object; a batch of pictures gives one object each."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the object is: one mask for all pictures, or one for each. Without a mask, or with an empty "
                    "one, a plain background is removed.",
                ),
                io.Combo.Input(
                    "mask_shows",
                    options=list(MASK_SHOWS),
                    default="auto",
                    **ADVANCED,
                    tooltip="What is white in the mask: the transparent background with Load Image, the object with most "
                    "cut-out nodes; 'auto' decides by the border.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    id="image_out", display_name="image", is_output_list=True, tooltip="The object on white, square."
                ),
                io.Mask.Output(
                    id="mask_out", display_name="mask", is_output_list=True, tooltip="Its coverage; white is object."
                ),
            ],
        )

    @classmethod
    @core_call
    def execute(cls, model: LoadedModel, image: Tensor, mask_shows: str = "auto", mask: Tensor | None = None) -> io.NodeOutput:
        fill = expect(model, LoadedModel, "model").model.fill
        masks = [None] * len(image) if mask is None else [object_mask(one, mask_shows) for one in mask_batch(mask)]
        if len(masks) == 1:
            masks *= len(image)
        if len(masks) != len(image):
            raise InputError(f"There are {len(image)} pictures and {len(masks)} masks; give one mask, or one for each picture.")
        references = [prepare_reference(one.cpu(), shown, fill) for one, shown in zip(image, masks, strict=True)]
        images = [reference.image[None] for reference in references]
        return io.NodeOutput(images, [reference.alpha[None, ..., 0] for reference in references])


def mask_batch(mask: Tensor) -> Tensor:
    """Return a native MASK as [B,H,W], whatever its leading dimensions."""
    return mask.reshape(-1, *mask.shape[-2:])


def object_mask(mask: Tensor, shows: str) -> Tensor | None:
    """Convert a mask [H,W] to the object's coverage; None for an empty mask, which Load Image gives for an image without
    transparency.

    Raises:
        InputError: ``shows`` is not known.
    """
    if shows not in MASK_SHOWS:
        raise InputError(f"mask_shows must be one of {', '.join(MASK_SHOWS)}, got {shows!r}.")
    mask = mask.cpu().float()
    if not bool(mask.any()):
        return None
    border = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    inverted = shows == "background" or (shows == "auto" and float(border.mean()) > 0.5)
    return 1 - mask if inverted else mask


def reference_inputs() -> list:
    """Return the inputs for the image and mask from Prepare Reference."""
    return [
        io.Image.Input("image", tooltip="The object on white, square and centred: the output of Prepare Reference."),
        io.Mask.Input("mask", tooltip="Coverage of the object; white is object."),
    ]


def elevation_input(default: float = 0.0, **options: Any) -> io.Input:
    return io.Float.Input(
        "elevation",
        default=default,
        min=-89.0,
        max=89.0,
        step=1.0,
        tooltip="Elevation in degrees from which the picture was taken: 0 at eye level, positive from above.",
        **options,
    )


def condition_output() -> io.Output:
    return types.Condition.Output(id="condition_out", display_name="condition", tooltip="The conditioned model.")


class ConditionOnImage(io.ComfyNode):
    """Condition a model on the reference image, which is encoded once."""

    TITLE = "Condition on Image"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerConditionOnImage",
            aliases=("image to 3d", "encode reference"),
            display_name=cls.TITLE,
            category="MicroDreamer/Condition",
            description="Conditions the model on the reference picture: encodes it once for the whole run.",
            inputs=[
                types.Model.Input("model", tooltip="A multi-view model that takes a picture."),
                *reference_inputs(),
                elevation_input(),
            ],
            outputs=[condition_output()],
        )

    @classmethod
    @core_call
    def execute(cls, model: LoadedModel, image: Tensor, mask: Tensor, elevation: float = 0.0) -> io.NodeOutput:
        return io.NodeOutput(condition_model(model, make_reference(image, mask, elevation)))


def make_reference(image: Tensor, mask: Tensor, elevation: float) -> Reference:
    """Make the reference from an IMAGE and a MASK of Prepare Reference.

    Raises:
        InputError: a batch of several, not square, of different sizes, or the elevation is out of range.
    """
    masks = mask_batch(mask)
    if len(image) != 1 or len(masks) != 1:
        raise InputError(
            f"One reference with one mask is expected, got a batch of {len(image)} and {len(masks)}; use Prepare Reference "
            "before, which makes a list of a batch and so one object of each picture."
        )
    image, mask = image[0].cpu(), masks[0].cpu()
    if image.shape[0] != image.shape[1] or image.shape[:2] != mask.shape:
        raise InputError(
            f"The reference must be square with a mask of its size, got {list(image.shape[:2])} and {list(mask.shape)}; "
            "use Prepare Reference before."
        )
    check_elevation(elevation)
    return Reference(image[..., :3].clone(), mask[..., None].clone(), float(elevation))


def condition_model(
    model: LoadedModel,
    reference: Reference | None,
    prompt: str | None = None,
    negative: str = "",
    view_words: bool = True,
) -> Conditioned:
    """Condition a model; ``negative`` and ``view_words`` are for models with a prompt.

    Raises:
        InputError: no model, or one that takes other inputs.
    """
    loaded = expect(model, LoadedModel, "model")
    load_to_device(loaded.patcher)
    if not loaded.model.takes_prompt:
        return Conditioned(loaded.model.condition(reference, prompt), reference, loaded, prompt)
    negative = negative or loaded.model.negative  # an input of a node is never absent, only empty
    diffusion = loaded.model.condition(reference, prompt, negative=negative, view_words=view_words)
    return Conditioned(diffusion, reference, loaded, prompt, negative)


NODES = (ExamplePicture, PrepareReference, ConditionOnImage)
