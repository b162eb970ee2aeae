// What the nodes of a plan show in the open frontend; for --check of browser.mjs, with a graph of an earlier version. What it
// returns is asserted by test_plan_widgets.py.
const PLAN = 'MicroDreamerSIRPlan', OPTIONS = 'MicroDreamerSIRPlanOptions';

export default async function check(page, old, out) {
  const seen = { fresh: await build(page) };
  await choose(page, 'preset', 'imagedream-gaussians');
  seen.chosen = await widgets(page);
  seen.edited = await edit(page);
  await page.evaluate(() => window.app.loadApiJson({
    a: { class_type: 'MicroDreamerSIRPlan', inputs: { eta: 0.25, iterations: 20, steps: -1, preset: 'stable-zero123-nerf' } },
    b: { class_type: 'MicroDreamerSIRPlanOptions', inputs: { views: 4, plan: ['a', 0], sampler: 'preset' } },
  }, 'api'));
  seen.api = await widgets(page);
  await page.evaluate(graph => window.app.loadGraphData(graph, true, true), old);
  seen.old = await widgets(page);
  seen.prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output);
  seen.unknown = await page.evaluate(unknown);
  await page.evaluate(graph => window.app.loadGraphData(graph, true, true), old);
  seen.end = await page.evaluate(queued);
  seen.saved = await page.evaluate(() => window.app.graph.serialize().nodes.map(node => [node.type, node.widgets_values]));
  seen.summaries = await page.evaluate(summaries);
  await page.screenshot({ path: `${out}/plan_widgets.png` });
  seen.sds = { built: await page.evaluate(baseline), opened: await page.evaluate(openBaselines) };
  await page.screenshot({ path: `${out}/sds_widgets.png` });
  return seen;
}

// A plan with options behind it, as a user adds them.
function build(page) {
  return page.evaluate(([PLAN, OPTIONS]) => {
    const { app, LiteGraph } = window;
    app.graph.clear();
    const [plan, options] = [PLAN, OPTIONS].map(kind => LiteGraph.createNode(kind));
    plan.pos = [100, 100], options.pos = [500, 100];
    app.graph.add(plan), app.graph.add(options);
    plan.connect(0, options, options.findInputSlot('plan'));
    app.canvas.ds.scale = 1, app.canvas.ds.offset = [0, 0];
    app.canvas.setDirty(true, true);
  }, [PLAN, OPTIONS]).then(() => widgets(page));
}

// Choose from the menu of a widget of the first node, with the mouse.
async function choose(page, name, entry) {
  const place = await page.waitForFunction(name => {
    const { canvas, graph } = window.app, [node] = graph.nodes, { y } = node.widgets.find(found => found.name === name);
    const { left, top } = canvas.canvas.getBoundingClientRect();
    return y > 0 && [left + node.pos[0] + node.size[0] / 2, top + node.pos[1] + y + 10];  // 0 until it is drawn
  }, name);
  const menu = page.locator('.litemenu-entry', { hasText: new RegExp(`^${entry}$`) });
  for (let tries = 0; tries < 10 && !(await menu.isVisible()); tries++) {  // a click between two frames may be lost
    await page.mouse.click(...(await place.jsonValue()));
    await page.waitForTimeout(2000);
  }
  await menu.click();
}

// Numbers that the user changes stay; what was not changed goes on to follow the preset.
function edit(page) {
  return page.evaluate(kinds => {
    const { canvas, graph } = window.app, [plan, options] = kinds.map(kind => graph.nodes.find(node => node.type === kind));
    const set = (node, name, value) =>
      node.widgets.find(found => found.name === name).setValue(value, { e: {}, node, canvas });
    set(options, 'views', 8);
    return new Promise(resolve => setTimeout(resolve)).then(() => set(plan, 'preset', 'stable-zero123-gaussians'));
  }, [PLAN, OPTIONS]).then(() => widgets(page));
}

function widgets(page) {
  return page.evaluate(() => Object.fromEntries(window.app.graph.nodes.filter(node => node.type.startsWith('MicroDreamer')).map(node => [
    node.type, Object.fromEntries(node.widgets.filter(found => found.name !== 'summary').map(found => [found.name, found.value])),
  ])));
}

// Where the preset comes over a link, the numbers are left open; without the link they are back.
function unknown() {
  const { app, LiteGraph } = window, plan = app.graph.nodes.find(node => node.type === 'MicroDreamerSIRPlan');
  const source = LiteGraph.createNode('PrimitiveNode'), slot = plan.findInputSlot('preset');
  const shown = () => plan.widgets.filter(found => found.name !== 'summary').map(found => found.value);
  app.graph.add(source);
  source.connect(0, plan, slot);
  const linked = shown();
  plan.disconnectInput(slot);
  return { linked, back: shown() };
}

function queued() {
  return new Promise(resolve => {
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
      window.app.api.addEventListener(kind, event => setTimeout(() => resolve([kind, event.detail?.exception_message ?? '']), 500));
    window.app.queuePrompt(0, 1);
  });
}

function summaries() {
  const found = window.app.graph.nodes.map(node => [node.type, node.widgets?.find(widget => widget.name === 'summary')]);
  return Object.fromEntries(found.filter(([, widget]) => widget).map(([type, widget]) => [type, widget.value]));
}

// SDS Steps as a user adds it: fresh, with a preset, with a number changed, custom, with the preset again.
function baseline() {
  const { app, LiteGraph } = window, { canvas } = app, node = LiteGraph.createNode('MicroDreamerSDSSteps');
  app.graph.clear();
  app.graph.add(node);
  const shown = () => node.widgets.map(found => found.value);
  const set = async (name, value) => {
    node.widgets.find(found => found.name === name).setValue(value, { e: {}, node, canvas });
    await new Promise(resolve => setTimeout(resolve));
    return shown();
  };
  return (async () => [
    shown(), (await set('steps', 60), await set('preset', 'dreamgaussian')), await set('guidance', 9),
    await set('preset', 'custom'), await set('preset', 'dreamgaussian'),
  ])();
}

// The widgets of SDS Steps in saved graphs and graphs of the API, of earlier versions and of this one.
async function openBaselines() {
  const kind = 'MicroDreamerSDSSteps', names = ['steps', 'form', 'guidance', 't_min', 't_max', 'weight', 'preset', 'times'];
  const shown = async () => {
    await new Promise(resolve => setTimeout(resolve));
    return window.app.graph.nodes[0].widgets.map(found => found.value);
  };
  const saved = async values => {
    const node = { id: 1, type: kind, pos: [100, 100], size: [300, 400], flags: {}, order: 0, mode: 0, properties: {} };
    const nodes = [{ ...node, inputs: [], outputs: [], widgets_values: values }];
    const graph = { last_node_id: 1, last_link_id: 0, nodes, links: [], groups: [], config: {}, extra: {}, version: 0.4 };
    await window.app.loadGraphData(graph, true, true);
    return shown();
  };
  const api = async values => {
    const inputs = Object.fromEntries(values.map((value, i) => [names[i], value]));
    await window.app.loadApiJson({ a: { class_type: kind, inputs } }, 'api');
    return shown();
  };
  const old = [60, 'noise', 3, 0.02, 0.98, 1, 'mvdream'], mine = [60, 'data', 9, 0.98, 0.98, 1, 'mvdream', 'falling'];
  const seen = { old_api: await api(old), api: await api(mine), old: await saved(old), saved: await saved(mine) };
  seen.old_custom = await saved([60, 'pixels', 7, 0.1, 0.9, 2, 'custom']);
  window.app.canvas.ds.scale = 1, window.app.canvas.ds.offset = [0, 0];
  window.app.canvas.setDirty(true, true);
  await new Promise(resolve => setTimeout(resolve, 500));
  return seen;
}
