// SIR Plan, SIR Plan Options and SDS Steps show the numbers that they use.
//
// A preset that is chosen fills the widgets of SIR Plan and SDS Steps; those of SIR Plan Options follow the plan that is linked
// to it, until they are changed. Graphs of earlier versions hold -1 or "preset" for a number of the preset: such open values are filled in.
// They stay, and come back, where the numbers cannot be known here, because something else is linked to the preset or the plan.
import { app } from "../../scripts/app.js";
import PLANS, { SDS } from "./presets.js";

const PLAN = "MicroDreamerSIRPlan", OPTIONS = "MicroDreamerSIRPlanOptions", BASELINE = "MicroDreamerSDSSteps";
// By class: the presets, and the one that a new node has.
const KINDS = { [PLAN]: [PLANS, "embedded"], [OPTIONS]: [PLANS, "embedded"], [BASELINE]: [SDS, "custom"] };
const HINT = "Run once to read the plan in words, with its network evaluations.";

const isOpen = value => value === -1 || value === "preset";
const opened = value => (typeof value === "number" ? -1 : "preset");
const widget = (node, name) => node.widgets.find(found => found.name === name);
const isLinked = (node, name) => !!node.inputs?.some(input => input.name === name && input.link != null);
const presets = node => KINDS[node.comfyClass][0];
const numbers = node => node.widgets.filter(({ name }) => Object.values(presets(node)).some(preset => name in preset));

// Whether a graph of an earlier version gave these numbers: its SDS Steps had no times, and its preset replaced what it gave.
const isReplaced = (node, given) =>
  node.comfyClass === BASELINE && numbers(node).every(({ name }) => given.has(name) === (name !== "times"));

// Note which numbers were given in the task that runs now, by whoever pastes or builds a graph: no preset takes their place.
function give(node, numbers) {
  const { given } = node.microdreamer;
  for (const { name, value } of numbers) if (!isOpen(value)) given.add(name);
  queueMicrotask(() => {
    const replaced = isReplaced(node, given);
    given.clear();
    if (replaced) follow(node, true);
  });
}

function origin(node, input) {
  let from = node.getInputNode(node.findInputSlot(input));
  while (from?.type === "Reroute") from = from.getInputNode(0);
  return from;
}

// What the numbers of a node are unless they are changed, by widget; null where that cannot be known.
function inherited(node, visit) {
  if (node.comfyClass !== OPTIONS) return isLinked(node, "preset") ? null : presets(node)[widget(node, "preset").value] ?? null;
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
    if (follows) number.value = now ? now[name] ?? value : opened(value);
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
    if (!(node.comfyClass in KINDS)) return;
    node.microdreamer = { inherited: presets(node)[KINDS[node.comfyClass][1]], given: new Set() };
    if (node.comfyClass !== BASELINE) showSummary(node);
    for (const number of numbers(node))
      after(number, "callback", () => {
        if (isOpen(number.value)) follow(node);
        else give(node, [number]);
        followAll();
      });
    if (node.comfyClass !== OPTIONS)
      after(widget(node, "preset"), "callback", () => {
        if (inherited(node) !== node.microdreamer.inherited) follow(node, true);
        followAll();
      });
    after(node, "onConnectionsChange", () => {
      if (app.configuringGraph) return;
      follow(node);
      followAll();
    });
    after(node, "onConfigure", ({ widgets_values: saved }) => {
      give(node, numbers(node).filter(number => node.widgets.indexOf(number) < saved?.length));
      // what a graph of an earlier version could not save is the linked plan's, not the default preset's
      const unsaved = numbers(node).filter(number => node.widgets.indexOf(number) >= saved?.length);
      if (node.comfyClass === OPTIONS) for (const number of unsaved) number.value = opened(number.value);
      if (node.comfyClass !== OPTIONS) settle(node);
    });
  },

  // Options may be configured before their plan.
  afterConfigureGraph() {
    ofClass(OPTIONS).forEach(settle);
  },
});
