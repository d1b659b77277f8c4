// The report of a fit: accuracy per class, confusion matrix, learning curve, suspicious labels.
import { html } from "./preact.js";
import { domainPath } from "./api.js";
import { percent, Thumbnail } from "./parts.js";

const MAX_SUSPECTS = 12;
const MAX_CONFUSION = 60;

function Classes({ report }) {
  return html`<div class="overflow-auto"><table>
    <caption>Accuracy of each class (leave-one-out)</caption>
    <thead><tr><th scope="col">class</th><th scope="col">pictures</th><th scope="col">accuracy</th>
      <th scope="col">with half of them</th><th scope="col">text features</th><th scope="col">mistaken for</th></tr></thead>
    <tbody>${report.classes.map((one) => html`<tr key=${one.name}>
      <th scope="row">${one.name}</th>
      <td>${one.n_examples}${one.n_examples > 0 && !one.is_fitted ? " (text features only)" : ""}</td>
      <td>${one.accuracy ? `${percent(one.accuracy.rate, 0)} (${percent(one.accuracy.low, 0)} to ${percent(one.accuracy.high, 0)})` : "-"}</td>
      <td>${percent(one.half_accuracy, 0)}</td>
      <td>${percent(one.text_accuracy, 0)}</td>
      <td>${one.mistaken_for ?? "-"}</td>
    </tr>`)}</tbody>
  </table></div>`;
}

function Confusion({ report }) {
  const { classes, confusion } = report;
  const isPredicted = new Set(confusion.flatMap((row) => row.flatMap((n, at) => (n ? [at] : []))));
  const shown = [...classes.keys()].filter((at) => classes[at].n_examples || isPredicted.has(at));
  if (shown.length > MAX_CONFUSION) return html`<p>The confusion matrix is shown for up to ${MAX_CONFUSION} classes.</p>`;
  const rows = shown.map((row) => shown.map((column) => confusion[row][column]));
  const most = Math.max(1, ...rows.flat());
  const names = shown.map((at) => classes[at].name);
  return html`<details><summary>Confusion matrix</summary><div class="overflow-auto"><table class="confusion">
    <caption>Rows: labels. Columns: predictions. Classes without either are left out.</caption>
    <thead><tr><td></td>${names.map((name) => html`<th scope="col" key=${name}>${name}</th>`)}</tr></thead>
    <tbody>${rows.map((row, at) => html`<tr key=${names[at]}><th scope="row">${names[at]}</th>
      ${row.map((n) => html`<td style=${{ "--share": n / most }}>${n || ""}</td>`)}</tr>`)}</tbody>
  </table></div></details>`;
}

function Curve({ report }) {
  if (report.method === "text") return html`<p>No head is better than the text features yet: add pictures, at least four of two or more classes.</p>`;
  const nWithout = report.classes.filter((one) => !one.n_examples).length;
  if (nWithout) return html`<p>${nWithout} of ${report.classes.length} classes have no labelled picture: the accuracy does not count them. Add pictures of them.</p>`;
  const points = 100 * (report.accuracy.rate - report.half_accuracy);
  return html`<p>With half of the pictures the accuracy is ${percent(report.half_accuracy)}:
    the other half ${points >= 0.05 ? `added ${points.toFixed(1)} points, so more pictures are likely to help` : "added nothing, so more pictures are unlikely to help"}.
    </p>`;
}

function Suspects({ report, domain, onLabel }) {
  const suspects = report.suspects.slice(0, MAX_SUSPECTS);
  if (!suspects.length) return html`<p>No label looks wrong.</p>`;
  return html`<section aria-label="labels to check"><h4>Labels to check (${report.suspects.length})</h4>
    ${suspects.length < report.suspects.length && html`<p>The ${suspects.length} most suspicious are shown.</p>`}
    <div class="tiles">${suspects.map((one) => html`<figure key=${one.id}>
      <${Thumbnail} path=${domainPath(domain, `/examples/${one.id}/thumbnail`)} alt=${`picture ${one.id}, labelled ${one.label}`} />
      <figcaption>${one.name && html`<span class="file-name" title=${one.name}>${one.name}</span>`}labelled ${one.label}<br />
        <button type="button" class="small" onClick=${() => onLabel([one], one.predicted)}>Change to ${one.predicted}</button>
        <button type="button" class="small secondary" onClick=${() => onLabel([one], one.label, true)}>Label is right</button>
      </figcaption>
    </figure>`)}</div></section>`;
}

export function Report({ report, domain, onLabel }) {
  return html`<div>
    <${Curve} report=${report} />
    <${Classes} report=${report} />
    <${Confusion} report=${report} />
    <${Suspects} ...${{ report, domain, onLabel }} />
  </div>`;
}
