// For browser.mjs: what becomes of files that are chosen for, and dropped on, a node that reads 3D files.
//
// `names` are those of the files to choose together; they hold one triangle.
const TRIANGLE = "mtllib tri.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl a\nf 1 2 3\n";

export default async function upload(page, names) {
  const chooser = page.waitForEvent("filechooser");
  await page.evaluate(() => {
    const { app, LiteGraph } = window;
    app.graph.clear();
    window.node = LiteGraph.createNode("MicroDreamerFieldFromMesh");
    app.graph.add(window.node);
    window.node.widgets.find(widget => widget.type === "button").callback();
  });
  const value = () => page.evaluate(() => window.node.widgets.find(widget => widget.name === "file").value);
  const change = before => page.waitForFunction(
    last => window.node.widgets.find(widget => widget.name === "file").value !== last, before);
  const first = await value();
  const content = name => Buffer.from(name.endsWith(".obj") ? TRIANGLE : "newmtl a\nKd 0.5 0.25 0.75\n");
  await (await chooser).setFiles(names.map(name => ({ name, mimeType: "text/plain", buffer: content(name) })));
  await change(first);
  const chosen = await value();
  const prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output);
  const taken = await page.evaluate(async text => {
    const files = new DataTransfer(), other = new DataTransfer();
    files.items.add(new File([text], "dropped.obj"));
    other.items.add(new File(["{}"], "workflow.json"));
    const { node } = window;
    return [await node.onDragDrop({ dataTransfer: files }), await node.onDragDrop({ dataTransfer: other })];
  }, TRIANGLE);
  return { first, chosen, prompt: Object.values(prompt)[0].inputs, taken, dropped: await value() };
}
