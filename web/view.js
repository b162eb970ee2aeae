// The object while it forms, in the nodes that make it: a viewer that can be turned, and a slider over the iterations of the run.
//
// Events "microdreamer.view" bring packed splats while a node runs (nodes/stream.py); finished iterations lie in ComfyUI's
// temporary folder (nodes/history.py). Where there is no splat (a NeRF) or no WebGL2, the sheet is shown.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { SplatViewer } from "./splats.js";

const OURS = /^MicroDreamer/, TAKE = "MicroDreamerTakeIteration", FIELD = "MD_FIELD", HEIGHT = 280, LEAST_WIDTH = 300;
const STYLE = `
.microdreamer-view { display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%; min-height: ${HEIGHT}px; }
.microdreamer-view > .shown { flex: 1; min-height: 0; position: relative; background: #fff; border-radius: 4px; overflow: hidden; outline: none; }
.microdreamer-view > .shown > * { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.microdreamer-view canvas { cursor: grab; touch-action: none; }
.microdreamer-view > .bar { display: flex; gap: 6px; align-items: center; font-size: 11px; color: var(--input-text, #ccc); }
.microdreamer-view .bar input { flex: 1; min-width: 40px; }
.microdreamer-view .bar button { font-size: 11px; padding: 1px 6px; border-radius: 4px; cursor: pointer; color: inherit;
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #555); }
.microdreamer-view [hidden] { display: none; }`;

function element(tag, values = {}, ...children) {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...children);
  return made;
}

class View {
  constructor(node) {
    this.node = node;
    this.facts = {};
    this.canvas = element("canvas", { title: "Drag to turn, wheel to zoom, double-click for the front" });
    this.sheet = element("img", { hidden: true, alt: "renders above targets" });
    this.slider = element("input", { type: "range", min: 0, max: 0, value: 0, title: "Iterations of this run", oninput: () => this.choose() });
    this.label = element("span");
    this.asSheet = element("button", { textContent: "sheet", title: "Object or sheet", onclick: () => this.toggle() });
    this.take = element("button", { textContent: "take", title: "Take Iteration: a node with the field of this iteration" });
    this.take.onclick = () => takeIteration(this.node, this.facts, this.entry());
    this.bar = element("div", { className: "bar", hidden: true }, this.slider, this.label, this.asSheet, this.take);
    const shown = element("div", { className: "shown", tabIndex: 0 }, this.canvas, this.sheet);
    shown.dataset.captureWheel = "true"; // Nodes 2.0 leaves the wheel to such elements once they have the focus
    this.canvas.addEventListener("pointerdown", () => shown.focus({ preventScroll: true }));
    this.root = element("div", { className: "microdreamer-view" }, shown, this.bar);
    for (const name of ["pointerdown", "pointermove"]) this.bar.addEventListener(name, event => event.stopPropagation());
    try {
      this.viewer = new SplatViewer(this.canvas);
    } catch (error) {
      console.warn("MicroDreamer:", error.message);
    }
  }

  entry() {
    return this.facts.iterations?.[Number(this.slider.value)];
  }

  follows() {
    return this.slider.value === this.slider.max;
  }

  // Take up what an event or the end of the node says; `splat` is base64.
  update({ splat, ...facts }) {
    const fresh = facts.folder !== undefined && facts.folder !== this.facts.folder, follows = fresh || this.follows();
    this.facts = fresh ? facts : { ...this.facts, ...facts };
    const count = facts.iterations?.length ?? 0;
    if (fresh || count) this.slider.max = Math.max(count - 1, 0);
    if (follows) this.slider.value = this.slider.max;
    this.bar.hidden = !this.facts.iterations;
    if (count) this.describe();
    if (!follows) return;
    if (splat && this.viewer && !this.sheetChosen) this.display(Uint8Array.from(atob(splat), c => c.charCodeAt(0)).buffer);
    else if (count) this.choose();
  }

  describe() {
    const { k, text, splat } = this.entry();
    this.asSheet.hidden = !splat || !this.viewer;
    this.label.textContent = k < 0 ? "start" : `k ${k}`;
    this.label.title = text;
  }

  display(buffer) {
    this.asked = null; // what is still on its way is older
    this.sheet.hidden = true;
    this.canvas.hidden = false;
    this.viewer.show(buffer, this.facts.camera);
  }

  toggle() {
    this.sheetChosen = !this.sheetChosen;
    this.asSheet.textContent = this.sheetChosen ? "object" : "sheet";
    this.choose();
  }

  // Show the iteration at which the slider stands.
  async choose() {
    const entry = this.entry();
    if (!entry) return;
    this.describe();
    const asked = (this.asked = address(this.facts.folder, entry, entry.splat && this.viewer && !this.sheetChosen ? "splat" : "jpg"));
    if (asked.includes(".jpg")) {
      Object.assign(this.sheet, { src: asked, hidden: false });
      this.canvas.hidden = true;
      return;
    }
    const answer = await fetch(asked);
    if (!answer.ok) return void (this.label.textContent = "no longer kept");
    const buffer = await answer.arrayBuffer();
    if (this.asked === asked) this.display(buffer); // the slider may have moved on
  }
}

function address(subfolder, { k }, suffix) {
  const filename = `${String(k + 1).padStart(4, "0")}.${suffix}`;
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type: "temp" })}`);
}

// Add a Take Iteration behind a node. The node's seed becomes that of the run again and stays, or it would make another object.
function takeIteration(node, { seed }, { k }) {
  const slot = node.outputs.findIndex(output => output.type === FIELD), taken = window.LiteGraph.createNode(TAKE);
  if (slot < 0 || !taken) return;
  const widget = node.widgets.find(found => found.name === "seed"), control = widget?.linkedWidgets?.[0];
  if (widget && seed !== undefined) widget.value = seed;
  if (control) control.value = "fixed"; // Nodes 2.0 shows it when the node is drawn again
  taken.pos = [node.pos[0], node.pos[1] + node.size[1] + 60];
  node.graph.add(taken);
  node.connect(slot, taken, taken.inputs.findIndex(input => input.type === FIELD));
  taken.widgets.find(widget => widget.name === "iteration").value = k;
  app.canvas.setDirty(true, true);
}

function viewOf(node) {
  if (node.microdreamerView) return node.microdreamerView;
  const view = (node.microdreamerView = new View(node));
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT };
  const widget = node.addDOMWidget("view", "microdreamer_view", view.root, options);
  widget.serialize = false;
  const removed = widget.onRemove;
  widget.onRemove = function () {
    view.viewer?.remove();
    return removed?.apply(this, arguments);
  };
  node.setSize([Math.max(node.size[0], LEAST_WIDTH), Math.max(node.size[1], node.computeSize()[1])]);
  return view;
}

// The node that an execution id names, also inside subgraphs.
function findNode(id) {
  let graph = app.rootGraph ?? app.graph, node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return OURS.test(node?.comfyClass) ? node : null;
}

app.registerExtension({
  name: "MicroDreamer.View",

  setup() {
    document.head.append(element("style", { textContent: STYLE }));
    api.addEventListener("microdreamer.view", ({ detail: { node: id, ...facts } }) => {
      const node = findNode(id);
      if (node) viewOf(node).update(facts);
    });
  },

  nodeCreated(node) {
    if (!OURS.test(node.comfyClass)) return;
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      const result = before?.apply(this, arguments), run = output?.microdreamer_run?.[0];
      if (run?.iterations.length) viewOf(node).update(run);
      return result;
    };
  },
});
