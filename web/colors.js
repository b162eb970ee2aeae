// A colour for the wires of each of the pack's types, in the classic canvas and in Nodes 2.0.
import { app } from "../../scripts/app.js";

// none of the colours that ComfyUI has for its own types
const COLORS = {
  MD_MODEL: "#8C6CF5",
  MD_CONDITION: "#D9722E",
  MD_CAMERAS: "#2BC4D8",
  MD_PLAN: "#D8CB6A",
  MD_FIELD: "#A6E22E",
  MD_FLOW: "#E4E8EC",
};

// Palettes set the colours of all types when they are loaded, those that they do not know to "": ours then stay.
function keep(colors, type) {
  let chosen = colors[type];
  const get = () => chosen || COLORS[type], set = color => (chosen = color);
  Object.defineProperty(colors, type, { get, set, enumerable: true, configurable: true });
}

app.registerExtension({
  name: "MicroDreamer.Colors",

  setup() {
    const { canvas } = app;
    for (const colors of [canvas.constructor.link_type_colors, canvas.default_connection_color_byType])
      if (colors) for (const type in COLORS) keep(colors, type);
    // a palette's own value is set on the element and wins over this
    const variables = Object.entries(COLORS).map(([type, color]) => `--color-datatype-${type}: ${color};`).join(" ");
    document.head.append(Object.assign(document.createElement("style"), { textContent: `:root { ${variables} }` }));
    canvas.setDirty(true, true);
  },
});
