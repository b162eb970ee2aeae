// Messages of the pack that are no errors of a node: what an interrupt has kept, where a loop goes on, a loop that ends nowhere.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "MicroDreamer.Notices",

  setup() {
    api.addEventListener("microdreamer.notice", ({ detail: { text, severity } }) => {
      app.extensionManager.toast.add({ severity, summary: "MicroDreamer", detail: text, life: 12000 });
    });
  },
});
