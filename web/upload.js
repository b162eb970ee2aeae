// Nodes that read a file take it from the user's disk: a button, or files dropped on the node.
//
// A mesh with companions (an .obj with its .mtl and pictures, a .gltf with its buffers) is chosen together with them; they go
// into a folder of their own, so that no file of the same name takes their place.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const MESHES = [".glb", ".gltf", ".obj", ".ply", ".stl"], COMPANIONS = [".mtl", ".bin", ".png", ".jpg", ".jpeg", ".webp"];
const PICTURE = "MicroDreamerExamplePicture", PICTURES = [".png", ".jpg", ".jpeg", ".webp"];
const READ = { MicroDreamerFieldFromMesh: MESHES, MicroDreamerFieldFromSplat: [".ply", ".spz", ".splat", ".ksplat"], MicroDreamerNewTexture: MESHES, [PICTURE]: PICTURES };
const FOLDER = "3d";

const endsIn = suffixes => file => suffixes.some(suffix => file.name.toLowerCase().endsWith(suffix));

async function send(file, subfolder) {
  const body = new FormData();
  body.append("image", file);
  body.append("type", "input");
  body.append("subfolder", subfolder);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (!answer.ok) throw new Error(`${file.name} could not be uploaded: ${answer.status} ${answer.statusText}`);
  const saved = await answer.json();
  return ["input", saved.subfolder, saved.name].filter(Boolean).join("/");
}

// Upload files and choose the first one that the node reads; false if there is none.
async function take(node, files) {
  const main = files.find(endsIn(READ[node.comfyClass]));
  if (!main) return false;
  const isPicture = node.comfyClass === PICTURE;
  const companions = isPicture ? [] : files.filter(file => file !== main && endsIn(COMPANIONS)(file));
  const folder = isPicture ? "" : companions.length ? `${FOLDER}/${main.name.replace(/\.[^.]*$/, "")}` : FOLDER;
  try {
    const [name] = await Promise.all([main, ...companions].map(file => send(file, folder)));
    const list = node.widgets.find(widget => widget.name === (isPicture ? "picture" : "file"));
    if (!list.options.values.includes(name)) list.options.values.push(name);
    list.value = name;
    list.callback?.(name);
    node.setDirtyCanvas?.(true, true);
  } catch (error) {
    app.extensionManager?.toast?.add({ severity: "error", summary: "MicroDreamer", detail: error.message, life: 8000 });
  }
  return true;
}

function choose(node) {
  const input = document.createElement("input");
  const more = node.comfyClass === PICTURE ? [] : COMPANIONS;
  Object.assign(input, { type: "file", multiple: more.length > 0, accept: [...READ[node.comfyClass], ...more].join(",") });
  input.onchange = () => take(node, [...input.files]);
  input.click();
}

app.registerExtension({
  name: "MicroDreamer.Upload",
  nodeCreated(node) {
    if (!(node.comfyClass in READ)) return;
    const button = node.addWidget("button", "choose file to upload", null, () => choose(node), { serialize: false });
    button.serialize = false;
    const over = node.onDragOver, drop = node.onDragDrop;
    node.onDragOver = function (event) {
      return [...(event.dataTransfer?.items ?? [])].some(item => item.kind === "file") || (over?.call(this, event) ?? false);
    };
    node.onDragDrop = async function (event) {
      return (await take(node, [...(event.dataTransfer?.files ?? [])])) || (drop?.call(this, event) ?? false);
    };
  },
});
