// How workflows look when the frontend opens them as templates; for --check of browser.mjs, with the paths of files. Reported for
// classic nodes and, where the frontend has them, for Nodes 2.0: the zoom, the rectangles of nodes that overlap by how many
// pixels of the graph, the part of notes' text that is hidden. Screenshots: OUT/NAME_classic.png and OUT/NAME_vue.png.
import fs from 'node:fs';
import path from 'node:path';

const SETTING = 'Comfy.VueNodes.Enabled', SIZE = { width: 1280, height: 800 };

export default async function check(page, files, out) {
  await page.setViewportSize(SIZE);
  await page.waitForTimeout(500);
  const seen = {};
  for (const mode of ['classic', 'vue']) {
    if (!(await page.evaluate(switchNodes, [SETTING, mode === 'vue']))) continue;
    await page.waitForTimeout(1500);
    for (const file of files) {
      const name = path.basename(file, '.json'), graph = JSON.parse(fs.readFileSync(file));
      await page.evaluate(graph => window.app.loadGraphData(graph, true, true, null, { openSource: 'template' }), graph);
      await page.waitForTimeout(4000);
      (seen[name] ??= {})[mode] = await page.evaluate(mode === 'vue' ? vue : classic);
      await page.screenshot({ path: `${out}/${name}_${mode}.png` });
    }
  }
  await page.evaluate(switchNodes, [SETTING, false]);
  return seen;
}

// Whether the frontend has the setting, or is asked for what it always shows.
async function switchNodes([setting, on]) {
  const settings = window.app.extensionManager.setting;
  if (settings.get(setting) === undefined) return !on;
  await settings.set(setting, on);
  return true;
}

function classic() {
  const { canvas, graph } = window.app;
  const boxes = graph._nodes.map(node => [node.title, ...node.getBounding()]);
  return { zoom: canvas.ds.scale, nodes: boxes.length, bounds: bounds(boxes), overlaps: overlaps(boxes) };

  function bounds(boxes) {
    const [left, top] = [1, 2].map(i => Math.min(...boxes.map(box => box[i])));
    return [Math.max(...boxes.map(b => b[1] + b[3])) - left, Math.max(...boxes.map(b => b[2] + b[4])) - top];
  }
  function overlaps(boxes) {
    return boxes.flatMap((a, i) => boxes.slice(0, i).flatMap(b => {
      const x = Math.min(a[1] + a[3], b[1] + b[3]) - Math.max(a[1], b[1]);
      const y = Math.min(a[2] + a[4], b[2] + b[4]) - Math.max(a[2], b[2]);
      return x > 1 && y > 1 ? [[a[0], b[0], Math.round(x), Math.round(y)]] : [];
    }));
  }
}

function vue() {
  const { canvas, graph } = window.app, zoom = canvas.ds.scale;
  const title = id => graph.getNodeById(id)?.title ?? id;
  const found = [...document.querySelectorAll('[data-node-id]')].filter(node => node.getBoundingClientRect().width > 0);
  const boxes = found.map(node => {
    const box = node.getBoundingClientRect();
    return [title(node.dataset.nodeId), box.x / zoom, box.y / zoom, box.width / zoom, box.height / zoom];
  });
  const hidden = found.flatMap(node => [...node.querySelectorAll('.comfy-markdown-content, .comfy-markdown, .markdown-content')])
    .map(text => text.scrollHeight - text.clientHeight).filter(rest => rest > 4);
  const pairs = boxes.flatMap((a, i) => boxes.slice(0, i).flatMap(b => {
    const x = Math.min(a[1] + a[3], b[1] + b[3]) - Math.max(a[1], b[1]);
    const y = Math.min(a[2] + a[4], b[2] + b[4]) - Math.max(a[2], b[2]);
    return x > 1 && y > 1 ? [[a[0], b[0], Math.round(x), Math.round(y)]] : [];
  }));
  return { zoom, nodes: boxes.length, overlaps: pairs, hidden, sizes: boxes.map(b => [b[0], Math.round(b[3]), Math.round(b[4])]) };
}
