// The key of this tab: asked for when the server wants one, kept in sessionStorage alone.

import { key } from "./api.js";
import { at } from "./dom.js";

let asking = null;

/** Ask for a key, and return when there is one; several who ask wait for the same answer. */
export function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = at("key-dialog");
    at("key-wrong").textContent = key.get() ? "This is no key of this server." : "";
    key.forget();
    at("key").value = "";
    dialog.showModal();
    at("key").focus();
    const take = (event) => {
      event.preventDefault();
      key.set(at("key").value.trim());
      at("key").value = "";
      at("key-form").removeEventListener("submit", take);
      at("change-key").hidden = false;
      asking = null;
      dialog.close();
      resolve();
    };
    at("key-form").addEventListener("submit", take);
  });
  return asking;
}

/** Let the key be changed, and keep the question open until it is answered. */
export function prepareKeys() {
  at("change-key").hidden = !key.get();
  at("change-key").addEventListener("click", () => {
    key.forget();
    location.reload();
  });
  // Nothing works without a key: a dialog that was closed by Escape opens again.
  at("key-dialog").addEventListener("close", () => {
    if (asking !== null) at("key-dialog").showModal();
  });
}
