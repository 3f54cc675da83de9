// Keeps the parts of a page current that are marked for it, but for one in which somebody has marked text.

import { follow } from "./live.js";

const isMarked = (part) => !getSelection().isCollapsed && getSelection().containsNode(part, true);

// Focus stays on the same link.
function replace(part, other) {
  const address = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
  const fresh = document.importNode(other, true);
  part.replaceWith(fresh);
  if (address) Array.from(fresh.querySelectorAll("a")).find((a) => a.getAttribute("href") === address)?.focus();
}

follow(
  () => location.href,
  (html) => {
    const current = new DOMParser().parseFromString(html, "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = current.getElementById(part.id);
      if (other && !isMarked(part) && part.outerHTML !== other.outerHTML) replace(part, other);
    }
    return current.querySelector(".freshness-text").textContent.replace("Updated ", "");
  },
);
