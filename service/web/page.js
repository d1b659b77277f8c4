"use strict";
const $ = (id) => document.getElementById(id);
const make = (tag, text, kind) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
let timer;
const headers = () => ($("key").value ? { Authorization: "Bearer " + $("key").value } : {});

async function showDomains() {
  clearTimeout(timer);
  const reply = await fetch("domains", { headers: headers() }).catch(() => null);
  if (reply && [401, 403].includes(reply.status)) { await askForKey(reply); return; }
  timer = setTimeout(showDomains, 5000);
  if (!reply || !reply.ok) return;
  const chosen = $("domain").value;
  const { domains } = await reply.json();
  $("domains").replaceChildren(...domains.map((d) => {
    const row = make("tr");
    const digest = d.digest ? d.digest.slice(0, 19) : "-";
    for (const text of [d.domain, d.state, d.version ?? "-", d.n_classes ?? "-"]) row.append(make("td", text));
    const cell = make("td");
    cell.append(make("code", digest));
    row.append(cell);
    return row;
  }));
  $("domain").replaceChildren(...domains.filter((d) => d.version).map((d) => make("option", d.domain)));
  if (chosen) $("domain").value = chosen;
}

// A rejected key is not sent again until it is changed: the service limits wrong keys.
async function askForKey(reply) {
  $("keybox").hidden = false;
  if (!$("key").value) return;
  const { title, detail } = await reply.json();
  $("keynote").textContent = title + ": " + detail;
  $("keynote").className = "error";
}

async function classify(file) {
  const box = make("div", undefined, "result");
  const picture = make("img");
  const scores = make("div", "...", "scores");
  picture.alt = file.name;
  picture.src = URL.createObjectURL(file);
  box.append(picture, scores);
  $("results").prepend(box);
  const query = new URLSearchParams({ top_k: "3" });
  if ($("labels").value.trim()) query.set("labels", $("labels").value);
  try {
    const reply = await fetch("classify/" + encodeURIComponent($("domain").value) + "?" + query,
      { method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream", ...headers() } });
    const body = await reply.json();
    scores.replaceChildren(...(reply.ok ? answer(file, body) : [make("p", body.title + ": " + body.detail, "error")]));
  } catch (error) {
    scores.replaceChildren(make("p", "The service cannot be reached.", "error"));
  }
}

function answer(file, body) {
  const nodes = [make("p", file.name + " - " + body.domain + " version " + body.version + ", " +
    Math.round(body.timing_ms.total) + " ms", "muted")];
  for (const found of body.results[0].predictions) {
    nodes.push(make("div", found.label + " " + (100 * found.probability).toFixed(1) + " %"));
    const bar = make("div", undefined, "bar");
    bar.style.width = 100 * found.probability + "%";
    nodes.push(bar);
  }
  return nodes;
}

const classifyAll = (files) => [...files].forEach(classify);
$("files").addEventListener("change", (event) => { classifyAll(event.target.files); event.target.value = ""; });
$("key").addEventListener("change", () => {
  $("keynote").textContent = "";
  showDomains();
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") classifyAll(event.dataTransfer.files);
  });
}
showDomains();
