// Keeps the parts of a page current that are marked for it, but for the one that somebody is in.

import { follow } from "./live.js";

follow(
  () => location.href,
  (html) => {
    const current = new DOMParser().parseFromString(html, "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = current.getElementById(part.id);
      const inUse = part.contains(document.activeElement) || getSelection().containsNode(part, true);
      if (other && !inUse && part.outerHTML !== other.outerHTML) part.replaceWith(document.importNode(other, true));
    }
    return current.querySelector(".freshness-text").textContent.replace("Updated ", "");
  },
);
