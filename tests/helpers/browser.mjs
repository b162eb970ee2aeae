// Opens workflows in ComfyUI's own frontend, headless, one page for all, and prints as JSON what it saw.
//
//   node browser.mjs URL OUT CHROMIUM [--run NAME WIDGETS] [--check MODULE VALUE] WORKFLOW.json ...
//
// For every workflow: the node types that the frontend does not know, what graphToPrompt makes of it, errors of the page, and
// OUT/NAME.png. With --run, that workflow is queued too, after WIDGETS (JSON: class to values by widget) were set, and
// OUT/NAME_done.png and OUT/NAME_preview3d.png show its result. With --check, what MODULE's default function of the page, of
// VALUE (JSON) and of OUT returns is reported too.
// Needs playwright-core, found from the folder in NODE_PACKAGES.
import { createRequire } from 'node:module';
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const { chromium } = createRequire(path.join(process.env.NODE_PACKAGES, 'x.js'))('playwright-core');
const [url, out, executablePath, ...rest] = process.argv.slice(2);
const [, run, widgets] = rest[0] === '--run' ? rest.splice(0, 3) : [];
const [, check, value] = rest[0] === '--check' ? rest.splice(0, 3) : [];
const READY_MS = 180_000, RUN_MS = 300_000, DRAW_MS = 60_000, FRAME_MS = 200;
const PREVIEW = 'canvas:not(#graph-canvas):not(.minimap-canvas)';

async function open(browser, errors) {
  // the host's policy under --disable-api-nodes forbids blob: addresses, through which three.js reads the textures of a GLB
  const page = await browser.newPage({ viewport: { width: 2400, height: 1200 }, bypassCSP: true });
  page.setDefaultTimeout(READY_MS);
  await page.route('**/*', route => (new URL(route.request().url()).origin === url ? route.continue() : route.abort()));
  // pictures are drawn without a graphics card: at full rate they would take the processor from the server
  await page.addInitScript(wait => {
    const draw = window.requestAnimationFrame.bind(window);
    window.requestAnimationFrame = frame => setTimeout(() => draw(frame), wait);
    window.cancelAnimationFrame = id => clearTimeout(id);
  }, FRAME_MS);
  page.on('pageerror', error => errors.push(error.stack ?? String(error)));
  page.on('console', message => message.type() === 'error' && errors.push(`${message.text()} (${message.location().url})`));
  // without this, the first visit opens a tour over the canvas
  await fetch(`${url}/api/settings/Comfy.TutorialCompleted`, { method: 'POST', body: 'true' });
  await page.goto(url, { waitUntil: 'domcontentloaded' });
  await page.waitForFunction(() => window.app?.graph && window.app.extensionManager
    && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 20);
  await page.waitForTimeout(1500);
  return page;
}

async function load(page, file) {
  await page.evaluate(workflow => window.app.loadGraphData(workflow, true, true), JSON.parse(fs.readFileSync(file)));
  await page.evaluate(() => {
    const { canvas, graph } = window.app, boxes = graph._nodes.map(node => node.getBounding());
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
    const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    canvas.low_quality_zoom_threshold = canvas.min_font_size_for_lod = 0;  // text is wanted however small
    canvas.ds.fitToBounds([left, top, right - left, bottom - top], { zoom: 0.9 });
    canvas.setDirty(true, true);
  });
  await page.waitForTimeout(1000);
  return page.evaluate(async () => {
    const all = graph => graph._nodes.flatMap(node => [node, ...(node.subgraph ? all(node.subgraph) : [])]);
    const known = window.LiteGraph.registered_node_types;
    return {
      missing: all(window.app.graph).filter(node => !node.subgraph && !(node.type in known)).map(node => node.type),
      prompt: (await window.app.graphToPrompt()).output,
    };
  });
}

// Queue the open workflow as its Run button does, and wait until Preview 3D has drawn the model and stands still.
async function queue(page, name) {
  await page.evaluate(values => {
    for (const node of window.app.graph._nodes)
      for (const widget of node.widgets ?? [])
        if (widget.name in (values[node.type] ?? {})) widget.value = values[node.type][widget.name];
  }, JSON.parse(widgets));
  const model = page.waitForResponse(answer => answer.url().includes('.glb') && answer.ok(), { timeout: RUN_MS });
  model.catch(() => {});  // awaited only after success
  const empty = await page.locator(PREVIEW).last().screenshot();
  const end = await page.evaluate(limit => new Promise(resolve => {
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
      window.app.api.addEventListener(kind, event => resolve([kind, event.detail?.exception_message ?? '']));
    setTimeout(() => resolve(['timeout', '']), limit);
    window.app.queuePrompt(0, 1);
  }), RUN_MS);
  if (end[0] !== 'execution_success') return { end };
  const shown = (await model).url();
  let before = empty, now = empty;
  for (const stop = Date.now() + DRAW_MS; Date.now() < stop && (now.equals(empty) || !now.equals(before));) {
    await page.waitForTimeout(2000);
    [before, now] = [now, await page.locator(PREVIEW).last().screenshot({ path: path.join(out, `${name}_preview3d.png`) })];
  }
  await page.screenshot({ path: path.join(out, `${name}_done.png`) });
  return { end, shown };
}

fs.mkdirSync(out, { recursive: true });
const browser = await chromium.launch({
  executablePath, args: ['--no-sandbox', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist'],
});
try {
  const errors = [], workflows = {};
  const page = await open(browser, errors);
  for (const file of rest) {
    const name = path.basename(file, '.json'), before = errors.length;
    workflows[name] = await load(page, file);
    await page.screenshot({ path: path.join(out, `${name}.png`) });
    if (name === run) workflows[name].run = await queue(page, name);
    workflows[name].errors = errors.slice(before);
  }
  const checked = check ? await (await import(pathToFileURL(check))).default(page, JSON.parse(value), out) : null;
  process.stdout.write(JSON.stringify({ workflows, errors, checked }) + '\n');
} finally {
  await browser.close();
}
