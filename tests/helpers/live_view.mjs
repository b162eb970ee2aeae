// Runs a graph in the open frontend and looks at the viewer of one of its nodes: while it runs, from the front, turned, and at
// the start of the run; for --check of browser.mjs. What it returns is asserted by test_live_view.py.
export default async function check(page, { graph, node: id, vue }, out) {
  await page.evaluate(vue => window.app.ui.settings.setSettingValue('Comfy.VueNodes.Enabled', vue), vue);
  for (let tries = 0; tries < 10; tries++) {  // on a busy machine the default graph may come later and take its place
    await page.evaluate(graph => window.app.loadApiJson(graph, 'live view'), graph);
    await page.waitForTimeout(2000);
    if (await page.evaluate(id => window.app.graph.getNodeById(id)?.type, id) === graph[id].class_type) break;
  }
  await page.evaluate(id => {
    const { canvas, graph } = window.app, node = graph.getNodeById(id);
    canvas.ds.scale = 1.2;
    canvas.ds.offset = [60 - node.pos[0], 60 - node.pos[1]];
    canvas.setDirty(true, true);
    window.events = [];
    window.app.api.addEventListener('microdreamer.view', ({ detail, timeStamp }) =>
      window.events.push({ at: timeStamp, bytes: JSON.stringify(detail).length, splat: !!detail.splat, node: detail.node }));
  }, id);
  const colors = await palettes(page);
  const forming = page.waitForFunction(() => window.events.some(event => event.splat))
    .then(() => page.waitForTimeout(1500)).then(() => page.screenshot({ path: `${out}/live_forming.png` }));
  const end = await page.evaluate(queued);
  await forming;
  await page.waitForTimeout(1500);
  const seen = { colors, seed: graph[id].inputs.seed, end, events: await page.evaluate(() => window.events) };
  await page.screenshot({ path: `${out}/live_done.png` });
  const canvas = page.locator('.microdreamer-view canvas');
  const shots = { front: await picture(page, id) };
  const box = await canvas.boundingBox();
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2], before = await place(page, id);
  await page.mouse.move(x, y);
  await page.mouse.down();
  await page.mouse.move(x - box.height / 4, y - 5, { steps: 4 });
  await page.mouse.up();
  shots.turned = await picture(page, id);
  await page.mouse.wheel(0, -300);
  await page.waitForTimeout(300);
  shots.near = await picture(page, id);
  seen.moved = JSON.stringify(before) !== JSON.stringify(await place(page, id));
  await canvas.dblclick();
  shots.reset = await picture(page, id);
  await page.locator('.microdreamer-view input').evaluate(slider => {
    slider.value = 0;
    slider.dispatchEvent(new Event('input'));
  });
  await page.waitForTimeout(1000);
  shots.start = await picture(page, id);
  seen.label = await page.locator('.microdreamer-view span').textContent();
  await page.getByRole('button', { name: 'take', exact: true }).click();
  seen.taken = await page.evaluate(() => {
    const [taken] = window.app.graph.nodes.filter(node => node.type === 'MicroDreamerTakeIteration');
    const from = taken?.getInputNode(0), { value, linkedWidgets } = from.widgets.find(widget => widget.name === 'seed');
    return { k: taken.widgets[0].value, from: from.type, seed: value, control: linkedWidgets[0].value };
  });
  await page.getByRole('button', { name: 'sheet', exact: true }).click();
  await page.waitForTimeout(700);
  seen.sheet = await page.locator('.microdreamer-view img').evaluate(img => [img.hidden, img.naturalWidth]);
  await page.screenshot({ path: `${out}/live_start.png` });
  return { ...seen, shots };
}

// The colours of the pack's types in the canvas and in Nodes 2.0, with another palette and with the usual one again.
function palettes(page) {
  return page.evaluate(async () => {
    const { canvas, ui } = window.app, seen = [];
    for (const palette of ['light', 'dark']) {
      await ui.settings.setSettingValue('Comfy.ColorPalette', palette);
      await new Promise(resolve => setTimeout(resolve, 1500));
      const style = getComputedStyle(document.body);
      const color = type => [canvas.constructor.link_type_colors[type], canvas.default_connection_color_byType[type],
        style.getPropertyValue(`--color-datatype-${type}`).trim()];
      seen.push(Object.fromEntries(['MODEL', 'CONDITION', 'CAMERAS', 'PLAN', 'FIELD', 'FLOW'].map(type => [type, color(`MD_${type}`)])));
    }
    return seen;
  });
}

// What the viewer shows, as a data URL: read in the task that draws it, for nothing is kept after.
function picture(page, id) {
  return page.evaluate(id => {
    const { viewer } = window.app.graph.getNodeById(id).microdreamerView;
    viewer.draw();
    return viewer.canvas.toDataURL();
  }, id);
}

// Where the graph and its node stand: turning the object must move neither.
function place(page, id) {
  return page.evaluate(id => {
    const { canvas, graph } = window.app;
    return [canvas.ds.scale, [...canvas.ds.offset], [...graph.getNodeById(id).pos]];
  }, id);
}

function queued() {
  return new Promise(resolve => {
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
      window.app.api.addEventListener(kind, event => setTimeout(() => resolve([kind, event.detail?.exception_message ?? '']), 500));
    window.app.queuePrompt(0, 1);
  });
}
