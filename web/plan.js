// SIR Plan and SIR Plan Options show the numbers that they use.
//
// A preset that is chosen fills the widgets of SIR Plan; those of SIR Plan Options follow the plan that is linked to it, until
// they are changed. Graphs of earlier versions hold -1 or "preset" for a number of the preset: such open values are filled in.
// They stay, and come back, where the numbers cannot be known here, because something else is linked to the preset or the plan.
import { app } from "../../scripts/app.js";
import PRESETS from "./presets.js";

const PLAN = "MicroDreamerSIRPlan", OPTIONS = "MicroDreamerSIRPlanOptions", DEFAULT = "embedded";
const HINT = "Run once to read the plan in words, with its network evaluations.";

const isOpen = value => value === -1 || value === "preset";
const opened = value => (typeof value === "number" ? -1 : "preset");
const widget = (node, name) => node.widgets.find(found => found.name === name);
const isLinked = (node, name) => !!node.inputs?.some(input => input.name === name && input.link != null);
const numbers = node => node.widgets.filter(found => found.name in PRESETS[DEFAULT]);

// Note which numbers were given in the task that runs now, by whoever pastes or builds a graph: no preset takes their place.
function give(node, given) {
  for (const { name, value } of given) if (!isOpen(value)) node.microdreamer.given.add(name);
  queueMicrotask(() => node.microdreamer.given.clear());
}

function origin(node, input) {
  let from = node.getInputNode(node.findInputSlot(input));
  while (from?.type === "Reroute") from = from.getInputNode(0);
  return from;
}

// What the numbers of a node are unless they are changed, by widget; null where that cannot be known.
function inherited(node, visit) {
  if (node.comfyClass === PLAN) return isLinked(node, "preset") ? null : PRESETS[widget(node, "preset").value] ?? null;
  if (!isLinked(node, "plan")) return node.microdreamer.inherited;
  const from = origin(node, "plan");
  if (from?.comfyClass === PLAN) return inherited(from);
  if (from?.comfyClass !== OPTIONS) return null;
  visit(from);
  const shown = number => (isLinked(from, number.name) ? opened(number.value) : number.value);
  return Object.fromEntries(numbers(from).map(number => [number.name, shown(number)]));
}

// Let the numbers of a node follow what they were inherited from; with `all`, also those that were changed.
function follow(node, all = false) {
  const { inherited: before, given } = node.microdreamer, now = inherited(node, follow);
  node.microdreamer.inherited = now;
  for (const number of numbers(node)) {
    const { name, value } = number;
    const follows = isOpen(value) || (!given.has(name) && (all || value === before?.[name]));
    if (follows) number.value = now?.[name] ?? opened(value);
  }
  node.setDirtyCanvas?.(true, true);
}

// The same for a node that was loaded, whose numbers are as they were saved.
function settle(node) {
  node.microdreamer.inherited = inherited(node, settle);
  follow(node);
}

const every = graph => graph.nodes.flatMap(node => [node, ...(node.subgraph ? every(node.subgraph) : [])]);
const ofClass = kind => every(app.rootGraph ?? app.graph).filter(node => node.comfyClass === kind);
const followAll = () => app.configuringGraph || ofClass(OPTIONS).forEach(node => follow(node));

function after(object, name, action) {
  const before = object[name];
  object[name] = function (...values) {
    const result = before?.apply(this, values);
    action(...values);
    return result;
  };
}

function showSummary(node) {
  const text = Object.assign(document.createElement("textarea"), { readOnly: true, rows: 5, placeholder: HINT });
  text.className = "comfy-multiline-input";
  const options = { serialize: false, getMinHeight: () => 80, getValue: () => text.value, setValue: value => (text.value = value) };
  node.addDOMWidget("summary", "microdreamer_summary", text, options).serialize = false;
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  after(node, "onExecuted", output => (text.value = output?.text?.[0] ?? ""));
}

app.registerExtension({
  name: "MicroDreamer.Plan",

  nodeCreated(node) {
    if (node.comfyClass !== PLAN && node.comfyClass !== OPTIONS) return;
    node.microdreamer = { inherited: PRESETS[DEFAULT], given: new Set() };
    showSummary(node);
    for (const number of numbers(node))
      after(number, "callback", () => {
        if (isOpen(number.value)) follow(node);
        else give(node, [number]);
        followAll();
      });
    if (node.comfyClass === PLAN)
      after(widget(node, "preset"), "callback", () => {
        if (inherited(node) !== node.microdreamer.inherited) follow(node, true);
        followAll();
      });
    after(node, "onConnectionsChange", () => {
      if (app.configuringGraph) return;
      follow(node);
      followAll();
    });
    after(node, "onConfigure", () => {
      give(node, numbers(node));
      if (node.comfyClass === PLAN) settle(node);
    });
  },

  // Options may be configured before their plan.
  afterConfigureGraph() {
    ofClass(OPTIONS).forEach(settle);
  },
});
