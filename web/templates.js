// The pack's templates: in order in the list, without nodes that this ComfyUI does not have, at a zoom at which they can be read.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const PACK = new URL(import.meta.url).pathname.split("/").at(-2);
const OPTIONAL = "microdreamer_optional", TEMPLATE = "microdreamer_template";
const LEGIBLE = 0.6, MARGIN = 60, TOP = 110, FRAMES = 90;

// ComfyUI lists the files in the order of the disk.
const list = api.getWorkflowTemplates?.bind(api);
if (list)
  api.getWorkflowTemplates = async () => {
    const templates = await list();
    templates[PACK]?.sort();
    return templates;
  };

const isKnown = (type, subgraphs) =>
  subgraphs.find(({ id }) => id === type)?.nodes.every(node => isKnown(node.type, subgraphs)) ?? type in LiteGraph.registered_node_types;

// Take optional nodes of unknown types, or with such nodes inside, out of a graph that is about to be opened.
function leaveOut(graph) {
  const subgraphs = graph.definitions?.subgraphs ?? [];
  const gone = new Set((graph.nodes ?? []).filter(node => node.properties?.[OPTIONAL] && !isKnown(node.type, subgraphs)).map(({ id }) => id));
  if (!gone.size) return;
  const cut = new Set(graph.links.filter(([, from, , to]) => gone.has(from) || gone.has(to)).map(([id]) => id));
  graph.nodes = graph.nodes.filter(({ id }) => !gone.has(id));
  graph.links = graph.links.filter(([id]) => !cut.has(id));
  for (const node of graph.nodes) {
    for (const input of node.inputs ?? []) if (cut.has(input.link)) input.link = null;
    for (const output of node.outputs ?? []) output.links = output.links?.filter(id => !cut.has(id)) ?? null;
  }
  const inside = ([x, y], [left, top, width, height]) => x >= left && x < left + width && y >= top && y < top + height;
  graph.groups = graph.groups.filter(({ bounding }) => graph.nodes.some(({ pos }) => inside(pos, bounding)));
  if (graph.definitions) graph.definitions.subgraphs = subgraphs.filter(({ id }) => graph.nodes.some(({ type }) => type === id));
}

// Frontends show the whole graph, however small its letters become: show its beginning instead.
function zoomIn() {
  const { ds } = app.canvas;
  if (ds.scale >= LEGIBLE) return;
  const [left, top] = [0, 1].map(axis => Math.min(...app.graph._nodes.map(({ pos }) => pos[axis])));
  ds.scale = LEGIBLE;
  ds.offset[0] = MARGIN / LEGIBLE - left + MARGIN;
  ds.offset[1] = TOP / LEGIBLE - top;
  app.canvas.setDirty(true, true);
}

// The frontend fits its view some frames after a graph is there; from the first turn of the wheel on, the zoom is the user's.
function keepLegible(frames = FRAMES) {
  const [first] = app.graph._nodes;
  window.addEventListener("wheel", () => (frames = 0), { once: true, capture: true });
  const watch = () => {
    if (frames-- <= 0 || app.graph._nodes[0] !== first) return;
    zoomIn();
    requestAnimationFrame(watch);
  };
  watch();
}

app.registerExtension({
  name: "MicroDreamer.Templates",

  beforeConfigureGraph: leaveOut,

  afterConfigureGraph() {
    const { extra } = app.graph;
    if (!extra?.[TEMPLATE]) return;
    delete extra[TEMPLATE]; // from now on it is the user's own
    keepLegible();
  },
});
