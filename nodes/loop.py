"""The loop pair: repeats the nodes between Start and End, one graph expansion per iteration.

* The template (nodes between Start and End, and previews attached to them) is always read from the user's nodes, never from
  copies.
* The field is passed from one iteration to the next as a value in an opaque box, not as a link: ComfyUI's cache keys walk all
  ancestors of a link, so linked iterations would cost quadratic time.
* Ids of the copies have a short prefix, because ComfyUI sends every id again with each progress message.
* A NeRF with its moments is large, and ComfyUI keeps every node's outputs. Passes made by the loop are never read from the
  cache again (their box has no cache key), so the NeRF that such a pass started with is freed when the next pass has ended; the
  first pass, which consists of the user's nodes and may be cached, keeps its NeRF.
* Where a loop stands after each pass is noted, so that an interrupted one can go on (``interrupted.py``).
* Wrong wires are found before the first pass (``loop_graph.py``).
* End and its copies take whole lists: ComfyUI would otherwise call them once for each value of a list, with wrong results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.sir.step import INITIALISATION
from . import interrupted, types
from .compat import GraphBuilder, io, is_link, loop_marks, schema
from .loop_graph import END_ID, START_ID, body_nodes, check_body, dependencies, is_copy, warn_of_no_end
from .types import FieldState, core_call, expect

_START, _END = "start", "end"


class Box:
    """Carries a value past ComfyUI's cache keys; it is never a link and never hashed.

    Attributes:
        value: the state at the start of a pass.
        last: the state at the start of the previous pass, None if the loop did not make it.
        first: the states at the start of the first two passes, which ComfyUI may need again.
    """

    __slots__ = ("first", "last", "value")

    def __init__(self, value: FieldState, last: FieldState | None = None, first: tuple[FieldState, ...] = ()):
        self.value, self.last, self.first = value, last, first

    def advance(self, field: FieldState, index: int) -> Box:
        """Return the box of the next pass; ``field`` is the result of pass ``index``, which started with this box."""
        if index == 0:
            return Box(field, first=(self.value, field))
        if self.last is not None:
            self.last.let_go((*self.first, self.value, field))
        return Box(field, self.value if index > 1 else None, self.first)

    def free_last(self) -> None:
        """Free the state that the previous pass started with."""
        if self.last is not None:
            self.last.let_go((*self.first, self.value))


@dataclass(frozen=True)
class LoopFlow:
    """Values from Start for End: the number of passes, and the result without any."""

    count: int
    initial: FieldState


def _pass_outputs(flow: str) -> list:
    """Return the outputs at the start of a pass; ``flow`` is the tooltip of that output."""
    return [
        types.Flow.Output(id="flow_out", display_name="flow", tooltip=flow),
        types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The field of this pass."),
        io.Int.Output(id="index_out", display_name="index", tooltip="The pass, from 0."),
    ]


class LoopStart(io.ComfyNode):
    """Mark the start of a loop; its outputs are those of each pass."""

    TITLE = "SIR Loop Start"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=START_ID,
            aliases=("for loop", "repeat", "iterate"),
            display_name=cls.TITLE,
            category="MicroDreamer/Loop",
            description="Repeats all nodes between this one and SIR Loop End. The field output is the current field in each "
            "pass.",
            inputs=[
                types.FieldSocket.Input("field", tooltip="The field of the first pass."),
                io.Int.Input(
                    "count",
                    default=21,
                    min=0,
                    max=10000,
                    tooltip="Passes; link 'passes' of SIR Plan for the initialisation and K more.",
                ),
                io.Boolean.Input(
                    "restart",
                    default=False,
                    optional=True,
                    tooltip="Count the iterations from 0 again, for a further loop with a plan of its own. The initialisation "
                    "is not repeated: link 'finished' of Reconstruct Steps to 'stop', or count K passes.",
                ),
            ],
            outputs=_pass_outputs("Link it to SIR Loop End."),
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
        )

    @classmethod
    @core_call
    def execute(cls, field: FieldState, count: int, restart: bool = False) -> io.NodeOutput:
        state = expect(field, FieldState, "field")
        if restart and state.k is not None:
            state = replace(state, k=INITIALISATION)
        if count > 0:
            warn_of_no_end(cls.hidden.dynprompt, cls.hidden.unique_id)
        return io.NodeOutput(LoopFlow(count, state), state, 0)


class LoopHead(io.ComfyNode):
    """Start of every pass but the first; made by the loop, never placed by the user."""

    TITLE = "SIR Loop Start (inner)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerLoopHead",
            aliases=("loop",),
            display_name=cls.TITLE,
            category="MicroDreamer/Loop/internal",
            description="Made by SIR Loop End; not for use in graphs.",
            is_experimental=True,
            inputs=[
                io.AnyType.Input("box", tooltip="The carried field."),
                io.Int.Input("index", default=0, min=0, max=10000, tooltip="The pass."),
            ],
            outputs=_pass_outputs("Not used."),
        )

    @classmethod
    @core_call
    def execute(cls, box: Box, index: int) -> io.NodeOutput:
        return io.NodeOutput(None, expect(box, Box, "box").value, index)


class LoopEnd(io.ComfyNode):
    """Mark the end of a loop; repeat its nodes and return the last field."""

    TITLE = "SIR Loop End"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=END_ID,
            aliases=("for loop", "repeat", "iterate"),
            display_name=cls.TITLE,
            category="MicroDreamer/Loop",
            description="Passes the field back to SIR Loop Start until the count is reached or 'stop' is true.",
            inputs=[
                types.Flow.Input("flow", tooltip="Of SIR Loop Start."),
                types.FieldSocket.Input("field", lazy=True, tooltip="The field at the end of a pass."),
                io.Boolean.Input(
                    "stop",
                    default=False,
                    optional=True,
                    lazy=True,
                    force_input=True,
                    tooltip="Ends the loop after this pass, e.g. 'finished' of Reconstruct Steps.",
                ),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The field of the last pass.")],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            is_input_list=True,
            enable_expand=True,
        )

    @classmethod
    def check_lazy_status(cls, flow: list[LoopFlow], **lazy: list) -> list[str]:
        """Request the loop's nodes only if the loop runs, and is wired so that it can."""
        loop = flow[0] if len(flow) == 1 else None
        if isinstance(loop, LoopFlow):
            if loop.count <= 0:
                return []
            me, prompt = cls.hidden.unique_id, cls.hidden.dynprompt
            try:
                check_body(prompt, prompt.get_node(me)["inputs"]["flow"][0], me)
            except InputError as error:
                raise InputError(f"{cls.TITLE} (node {me}): {error}") from error
        return [name for name, values in lazy.items() if all(value is None for value in values)]

    @classmethod
    @core_call
    def execute(
        cls, flow: list[LoopFlow], field: Sequence[FieldState | None] = (None,), stop: Sequence[bool] = (False,)
    ) -> io.NodeOutput:
        if len(flow) != 1:
            raise InputError(
                f"SIR Loop Start got a list of {len(flow)} fields or counts; a loop carries one; take one of them."
            )
        loop = expect(flow[0], LoopFlow, "flow")
        if loop.count <= 0:
            return io.NodeOutput(loop.initial)
        me, prompt = cls.hidden.unique_id, cls.hidden.dynprompt
        start = prompt.get_node(me)["inputs"]["flow"][0]
        return _next_pass(prompt, start, me, 0, loop.count, field, stop, Box(loop.initial))


class LoopStep(io.ComfyNode):
    """End of every pass but the first; made by the loop, never placed by the user."""

    TITLE = "SIR Loop End (inner)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerLoopStep",
            aliases=("loop",),
            display_name=cls.TITLE,
            category="MicroDreamer/Loop/internal",
            description="Made by SIR Loop End; not for use in graphs.",
            is_experimental=True,
            inputs=[
                io.Int.Input("index", default=0, min=0, max=10000, tooltip="The pass."),
                io.Int.Input("count", default=0, min=0, max=10000, tooltip="Passes in all."),
                io.String.Input("start_id", default="", tooltip="The wired SIR Loop Start."),
                io.String.Input("end_id", default="", tooltip="The wired SIR Loop End."),
                types.FieldSocket.Input("field", tooltip="The field at the end of the pass."),
                io.AnyType.Input("box", tooltip="The carried field."),
                io.Boolean.Input(
                    "stop", default=False, optional=True, force_input=True, tooltip="Ends the loop after this pass."
                ),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The field of the last pass.")],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            is_input_list=True,
            enable_expand=True,
        )

    @classmethod
    @core_call
    def execute(
        cls,
        index: list[int],
        count: list[int],
        start_id: list[str],
        end_id: list[str],
        field: Sequence[FieldState | None],
        box: list[Box],
        stop: Sequence[bool] = (False,),
    ) -> io.NodeOutput:
        return _next_pass(cls.hidden.dynprompt, start_id[0], end_id[0], index[0], count[0], field, stop, box[0])


def _next_pass(
    prompt: Any,
    start: str,
    end: str,
    index: int,
    count: int,
    fields: Sequence[FieldState | None],
    stops: Sequence[bool],
    carried: Box,
) -> io.NodeOutput:
    """The result of the loop after pass ``index``: the field itself, or the graph of the next pass.

    Args:
        carried: the box at the start of this pass.

    Raises:
        InputError: the pass did not end with one field and one "stop".
    """
    for name, values in (("field", fields), ("stop", stops)):
        if len(values) != 1:
            raise InputError(f"Pass {index} of the loop gave a list of {len(values)} for {name!r}; take one of them.")
    field, stop = fields[0], stops[0]
    if not isinstance(field, FieldState):
        raise InputError(
            f"Pass {index} of the loop gave {type(field).__name__} in place of a field; the body must return one field."
        )
    if field.field is carried.value.field and field.k == carried.value.k and not stop:
        raise InputError(
            f"Pass {index} of the loop gave back the field that it got: nothing was learned; link the field of Reconstruct "
            "Steps, and check that no node of the loop is bypassed."
        )
    interrupted.note_result(field)
    following = carried.advance(field, index)
    if stop or index + 1 >= count:
        interrupted.forget(end)
        return io.NodeOutput(field)
    index, following = _note_pass(prompt, end, index, following)
    graph = GraphBuilder(prefix=f"{end}.{index}.")
    head = graph.node(LoopHead.define_schema().node_id, _START, box=following, index=index)
    head.set_override_display_id(start)
    place = {"index": index, "count": count, "start_id": start, "end_id": end}
    tail = graph.node(LoopStep.define_schema().node_id, _END, **place, box=following)
    tail.set_override_display_id(end)
    copies = {node: graph.node(prompt.get_node(node)["class_type"], node) for node in body_nodes(prompt, start, end)}

    def relink(value: Any) -> Any:
        if not is_link(value):
            return value
        if value[0] == start:
            return head.out(value[1])
        return copies[value[0]].out(value[1]) if value[0] in copies else value

    for node, twin in copies.items():
        twin.set_override_display_id(node)
        for name, value in prompt.get_node(node)["inputs"].items():
            twin.set_input(name, relink(value))
    for name, value in prompt.get_node(end)["inputs"].items():
        if name != "flow":
            tail.set_input(name, relink(value))
    expanded, ids = graph.finalize(), {node: twin.id for node, twin in copies.items()}
    for node, twin in ids.items():
        expanded[twin] |= loop_marks(prompt.get_node(node), ids)
    return io.NodeOutput(tail.out(0), expand=expanded)


def _note_pass(prompt: Any, end: str, index: int, following: Box) -> tuple[int, Box]:
    """Note that pass ``index`` is finished; return the next one's index and box.

    They are later ones where an interrupted run has made more passes of the same loop.
    """
    if is_copy(end):  # a loop within a pass of another: that pass is made again
        return index + 1, following
    if index:
        interrupted.go_on(end, following, index + 1)
        return index + 1, following
    loop = interrupted.continue_after(end, dependencies(prompt, end), following.value, following)
    interrupted.note_result(loop.box.value)
    return loop.index, loop.box


NODES = (LoopStart, LoopHead, LoopEnd, LoopStep)
