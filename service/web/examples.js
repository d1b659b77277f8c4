// Grids of examples: groups of similar pictures to label, and the labelled ones by class.
import { html, useEffect, useRef, useState } from "./preact.js";
import { call, domainPath, getJson } from "./api.js";
import { Confirm, ErrorNote, percent, plural, Thumbnail } from "./parts.js";

const pathOf = (domain, id) => domainPath(domain, `/examples/${id}/thumbnail`);

function Tile({ domain, id, isSelected, onToggle }) {
  return html`<button type="button" class="tile" aria-pressed=${isSelected} onClick=${onToggle}>
    <${Thumbnail} path=${pathOf(domain, id)} alt=${`picture ${id}`} />
  </button>`;
}

// Groups, each { name, ids }. A click toggles a picture; with shift, all between the last clicked one and this one are selected.
export function Groups({ domain, groups, selected, onSelect }) {
  const last = useRef(null);
  const order = groups.flatMap((group) => group.ids);
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
  const toggleAll = (ids) => {
    const next = new Set(selected);
    const isAll = ids.every((id) => next.has(id));
    ids.forEach((id) => (isAll ? next.delete(id) : next.add(id)));
    onSelect(next);
  };
  return html`${groups.map(({ name, ids }) => html`<section class="group" key=${name} aria-label=${name}>
    <button type="button" class="small outline" aria-pressed=${ids.every((id) => selected.has(id))}
      onClick=${() => toggleAll(ids)}>${name}: ${plural(ids.length, "picture")}</button>
    <div class="tiles">${ids.map((id) => html`<${Tile} key=${id} domain=${domain} id=${id}
      isSelected=${selected.has(id)} onToggle=${(event) => toggle(id, event)} />`)}</div>
  </section>`)}`;
}

function captionOf({ label, predicted, margin, is_confirmed: isConfirmed }) {
  if (isConfirmed) return "confirmed";
  if (predicted && predicted !== label) return `predicted ${predicted}`;
  return margin === null ? "" : `margin ${percent(margin, 0)}`;
}

// Labelled examples of one class at a time, in pages.
export function LabelledExamples({ domain, classes, counts, changes, onLabel, onRemoved }) {
  const [label, setLabel] = useState("");
  const [page, setPage] = useState({ examples: [], next: null });
  const [selected, setSelected] = useState(new Set());
  const [error, setError] = useState(null);
  const load = async (after) => {
    try {
      const found = await getJson(domainPath(domain, "/examples"), { query: { label, limit: "100", ...(after ? { after } : {}) } });
      setPage(after ? { ...found, examples: [...page.examples, ...found.examples] } : found);
    } catch (problem) { setError(problem); }
  };
  useEffect(() => { setSelected(new Set()); if (label) load(); }, [label, changes]);
  const toggle = (id) => {
    const next = new Set(selected);
    if (next.has(id)) next.delete(id); else next.add(id);
    setSelected(next);
  };
  const chosen = page.examples.filter((one) => selected.has(one.id));
  const ids = chosen.map((one) => one.id);
  const remove = async () => {
    try {
      await call(domainPath(domain, "/examples"), { method: "DELETE", query: { ids: ids.join(",") } });
      await onRemoved();
    } catch (problem) { setError(problem); }
  };
  const labels = classes.filter((one) => counts[one]);
  if (!labels.length) return null;
  return html`<details><summary>Labelled pictures</summary>
    <label>Class <select value=${label} onChange=${(event) => setLabel(event.target.value)}>
      <option value="">choose a class</option>
      ${labels.map((one) => html`<option value=${one}>${one} (${counts[one]})</option>`)}</select></label>
    <div class="tiles">${page.examples.map((one) => html`<figure key=${one.id}>
      <${Tile} domain=${domain} id=${one.id} isSelected=${selected.has(one.id)} onToggle=${() => toggle(one.id)} />
      <figcaption>${captionOf(one)}</figcaption>
    </figure>`)}</div>
    ${page.next && html`<button type="button" class="small secondary" onClick=${() => load(page.next)}>Show more</button>`}
    ${ids.length > 0 && html`<div role="group">
      <button type="button" class="small secondary" onClick=${() => onLabel(chosen, null)}>Remove the label of ${plural(ids.length, "picture")}</button>
      <${Confirm} label="Delete" question=${`Delete ${plural(ids.length, "picture")} from the examples of ${domain}?`} onConfirm=${remove} />
    </div>`}
    <${ErrorNote} error=${error} />
  </details>`;
}
