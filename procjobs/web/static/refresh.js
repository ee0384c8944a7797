// Keeps a page that says data-refresh="seconds" current, without taking the focus or the selection from its reader.
"use strict";

const content = document.getElementById("content");
const seconds = Number(content?.dataset.refresh);

function inUse() {
  const selection = document.getSelection();
  const focused = document.activeElement;
  return document.hidden
    || (selection && !selection.isCollapsed)
    || (focused && focused !== content && content.contains(focused));
}

async function refresh() {
  if (!inUse()) {
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("content");
      if (fresh && !inUse()) {
        content.replaceChildren(...fresh.childNodes);
        document.title = page.title;
      }
      content.classList.remove("stale");
    } catch {
      content.classList.add("stale");
    }
  }
  setTimeout(refresh, seconds * 1000);
}

if (seconds > 0) {
  setTimeout(refresh, seconds * 1000);
}
