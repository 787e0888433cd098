"use strict";

// A link from `enclave-cc kbs page` carries the token behind the #, which no server sees; it goes into the form once.
const enter = document.getElementById("enter");
if (enter && location.hash.length > 1) {
  enter.elements.token.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
  enter.submit();
}

for (const form of document.querySelectorAll("form[data-confirm]")) {
  form.addEventListener("submit", (event) => {
    if (!confirm(form.dataset.confirm)) event.preventDefault();
  });
}

// New rows of a live table, every two seconds while the page is looked at.
const body = document.querySelector("tbody[data-live]");
const state = document.querySelector("[data-state]");
if (body) {
  const target = new URL(location.href);
  target.searchParams.set("rows", "1");
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(target, { credentials: "same-origin" });
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = document.createElement("tbody");
      fresh.innerHTML = await answer.text();
      const known = new Set(Array.from(body.rows, (row) => row.dataset.id));
      for (const row of fresh.rows) if (!known.has(row.dataset.id)) row.classList.add("new");
      body.replaceChildren(...fresh.children);
      state.textContent = "live";
      state.classList.remove("stale");
    } catch {
      state.textContent = "not reached";
      state.classList.add("stale");
    }
  };
  setInterval(refresh, 2000);
}
