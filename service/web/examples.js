// Grids of examples: groups of similar pictures to label, and the labelled ones by class.
import { html, useEffect, useRef, useState } from "./preact.js";
import { call, domainPath, getJson } from "./api.js";
import { Confirm, ErrorNote, percent, plural, Thumbnail } from "./parts.js";

const pathOf = (domain, id) => domainPath(domain, `/examples/${id}/thumbnail`);

function Tile({ domain, example, isSelected, onToggle }) {
  const text = example.label ?? example.prediction?.label ?? "not labelled";
  return html`<button type="button" class="tile" aria-pressed=${isSelected} onClick=${onToggle}
      title=${`picture ${example.id}: ${text}`}>
    <${Thumbnail} path=${pathOf(domain, example.id)} alt=${`picture ${example.id}`} />
  </button>`;
}

// A click toggles a picture; with shift, all between the last clicked one and this one are selected.
export function Groups({ domain, examples, selected, onSelect }) {
  const last = useRef(null);
  const groups = new Map();
  for (const one of examples) groups.set(one.group, [...(groups.get(one.group) ?? []), one]);
  const order = [...groups.values()].flat().map((one) => one.id);
  const toggle = (id, event) => {
    const next = new Set(selected);
    if (event.shiftKey && last.current !== null) {
      const [from, to] = [order.indexOf(last.current), order.indexOf(id)].sort((a, b) => a - b);
      order.slice(from, to + 1).forEach((one) => next.add(one));
    } else if (next.has(id)) next.delete(id);
    else next.add(id);
    last.current = id;
    onSelect(next);
  };
  const toggleAll = (members) => {
    const next = new Set(selected);
    const isAll = members.every((one) => next.has(one.id));
    members.forEach((one) => (isAll ? next.delete(one.id) : next.add(one.id)));
    onSelect(next);
  };
  return html`${[...groups.entries()].map(([group, members]) => html`<div class="group" key=${group} role="group"
      aria-label=${`group ${group + 1}`}>
    <button type="button" class="small outline" aria-pressed=${members.every((one) => selected.has(one.id))}
      onClick=${() => toggleAll(members)}>Group ${group + 1}: ${plural(members.length, "picture")}</button>
    <div class="tiles">${members.map((one) => html`<${Tile} key=${one.id} domain=${domain} example=${one}
      isSelected=${selected.has(one.id)} onToggle=${(event) => toggle(one.id, event)} />`)}</div>
  </div>`)}`;
}

// Labelled examples of one class at a time, in pages.
export function LabelledExamples({ domain, classes, onRelabel, onRemoved }) {
  const [label, setLabel] = useState(classes[0] ?? "");
  const [page, setPage] = useState({ examples: [], next: null });
  const [selected, setSelected] = useState(new Set());
  const [error, setError] = useState(null);
  const load = async (after) => {
    try {
      const found = await getJson(domainPath(domain, "/examples"), { query: { label, labelled: "true", limit: "100", ...(after ? { after } : {}) } });
      setPage(after ? { ...found, examples: [...page.examples, ...found.examples] } : found);
    } catch (problem) { setError(problem); }
  };
  useEffect(() => { setSelected(new Set()); if (label) load(); }, [label]);
  const toggle = (id) => {
    const next = new Set(selected);
    if (next.has(id)) next.delete(id); else next.add(id);
    setSelected(next);
  };
  const ids = [...selected];
  const remove = async () => {
    try {
      await call(domainPath(domain, "/examples"), { method: "DELETE", query: { ids: ids.join(",") } });
      await onRemoved();
    } catch (problem) { setError(problem); }
  };
  if (!classes.length) return null;
  return html`<details><summary>Labelled pictures</summary>
    <label>Class <select value=${label} onChange=${(event) => setLabel(event.target.value)}>
      ${classes.map((one) => html`<option value=${one}>${one}</option>`)}</select></label>
    <div class="tiles">${page.examples.map((one) => html`<figure key=${one.id}>
      <${Tile} domain=${domain} example=${one} isSelected=${selected.has(one.id)} onToggle=${() => toggle(one.id)} />
      <figcaption>${one.predicted && one.predicted !== one.label ? `predicted ${one.predicted}` : percent(one.margin, 0)}</figcaption>
    </figure>`)}</div>
    ${page.next && html`<button type="button" class="small secondary" onClick=${() => load(page.next)}>Show more</button>`}
    ${ids.length > 0 && html`<div role="group">
      <button type="button" class="small secondary" onClick=${() => onRelabel(ids, null)}>Remove the label of ${plural(ids.length, "picture")}</button>
      <${Confirm} label="Delete" question=${`Delete ${plural(ids.length, "picture")} from the examples of ${domain}?`} onConfirm=${remove} />
    </div>`}
    <${ErrorNote} error=${error} />
  </details>`;
}
