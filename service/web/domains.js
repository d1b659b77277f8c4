// The tab "Domains": versions, differences between two, upload, activation, rollback, rollout, history.
import { html, useEffect, useState } from "./preact.js";
import { call, domainPath, getJson, upload } from "./api.js";
import { Confirm, DropArea, ErrorNote, recall, remember, shortDigest, when } from "./parts.js";
import { Rollout } from "./rollout.js";

// Fields of two manifests that differ, as [path, left, right].
function differences(left, right, path = "") {
  const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  if (isObject(left) && isObject(right)) {
    const names = [...new Set([...Object.keys(left), ...Object.keys(right)])].sort();
    return names.flatMap((name) => differences(left[name], right[name], path ? `${path}.${name}` : name));
  }
  const [a, b] = [JSON.stringify(left), JSON.stringify(right)];
  return a === b ? [] : [[path, a ?? "-", b ?? "-"]];
}

function Metrics({ manifest }) {
  const { provenance } = manifest;
  const metrics = Object.entries(provenance.metrics).filter(([, value]) => typeof value === "number");
  return html`<dl>
    <dt>method</dt><dd>${provenance.method} (${provenance.phase}), made ${when(provenance.created)} by version ${provenance.code_version}</dd>
    <dt>classes</dt><dd>${manifest.classes.length}</dd>
    ${metrics.map(([name, value]) => html`<dt>${name}</dt><dd>${Number.isInteger(value) ? value : value.toFixed(4)}</dd>`)}
  </dl>`;
}

function Differences({ domain, versions }) {
  const [pair, setPair] = useState(["", ""]);
  const [rows, setRows] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    if (!pair[0] || !pair[1]) return;
    const load = (version) => getJson(domainPath(domain, `/versions/${version}`));
    Promise.all(pair.map(load)).then(
      ([left, right]) => { setRows(differences(left.manifest, right.manifest)); setError(null); }, setError);
  }, [pair.join()]);
  const choose = (at) => html`<select value=${pair[at]} aria-label=${at ? "second version" : "first version"}
      onChange=${(event) => setPair(pair.map((one, index) => (index === at ? event.target.value : one)))}>
    <option value="">version</option>
    ${versions.map((one) => html`<option value=${one.version}>${one.version}</option>`)}</select>`;
  return html`<details><summary>Compare two versions</summary>
    <div class="grid">${choose(0)}${choose(1)}</div>
    <${ErrorNote} error=${error} />
    ${rows && (rows.length === 0 ? html`<p>The manifests are equal.</p>` : html`<div class="overflow-auto"><table>
      <thead><tr><th scope="col">field</th><th scope="col">${pair[0]}</th><th scope="col">${pair[1]}</th></tr></thead>
      <tbody>${rows.map(([path, a, b]) => html`<tr key=${path}><th scope="row">${path}</th><td><code>${a}</code></td><td><code>${b}</code></td></tr>`)}</tbody>
    </table></div>`)}
  </details>`;
}

function Upload({ domain, onDone }) {
  const [progress, setProgress] = useState(null);
  const [isActivated, setActivated] = useState(false);
  const [answer, setAnswer] = useState(null);
  const [error, setError] = useState(null);
  const send = async ([file]) => {
    if (!file) return;
    setError(null);
    setAnswer(null);
    setProgress(0);
    try {
      setAnswer(await upload(domainPath(domain, `/versions?activate=${isActivated}`), file, setProgress));
      await onDone();
    } catch (problem) { setError(problem); }
    setProgress(null);
  };
  return html`<section aria-label="upload a bundle">
    <label><input type="checkbox" checked=${isActivated} onChange=${(event) => setActivated(event.target.checked)} /> Activate after the upload</label>
    <${DropArea} onFiles=${send} accept=".safetensors" isMultiple=${false} id="bundle-file">
      <strong>Drop a bundle for ${domain} here, or click to choose</strong> <small>.safetensors, as written by caspl boost, adapt or fit</small>
    <//>
    ${progress !== null && html`<label>${progress < 1 ? "Uploading" : "Checking and warming up"}
      <progress value=${progress < 1 ? progress : undefined} max="1"></progress></label>`}
    ${answer && html`<p role="status">${answer.is_new ? "Stored as" : "Already stored as"} version ${answer.version}${answer.is_live ? ", live" : ""}.</p>`}
    <${ErrorNote} error=${error} />
  </section>`;
}

// The keys that signed a version: their names if the server could verify the signature.
function Signatures({ signatures }) {
  if (!signatures.length) return "-";
  return signatures.map((one) => html`<div key=${one.key} title=${one.problem || `verified, key ${one.key}`}>
    ${one.is_verified ? one.name || shortDigest(one.key) : html`<code>${shortDigest(one.key)}</code> (not verified)`}</div>`);
}

function Version({ domain, one, candidate, onRollOut, onActivate, onDelete, onDownload }) {
  const [manifest, setManifest] = useState(null);
  const show = async (event) => {
    if (event.target.open && !manifest) setManifest((await getJson(domainPath(domain, `/versions/${one.version}`))).manifest);
  };
  return html`<tr>
    <th scope="row">${one.version}${one.is_live ? html` <mark>live</mark>` : ""}${one.version === candidate ? html` <mark>candidate</mark>` : ""}</th>
    <td><code>${shortDigest(one.digest)}</code></td>
    <td>${when(one.created_at)}</td>
    <td><${Signatures} signatures=${one.signatures} /></td>
    <td><details onToggle=${show}><summary>provenance</summary>${manifest && html`<${Metrics} manifest=${manifest} />`}</details></td>
    <td class="actions">
      ${!one.is_live && html`<button type="button" class="small" onClick=${() => onActivate(one.version)}>Activate</button>`}
      ${!one.is_live && !candidate && html`<${Confirm} label="Roll out" onConfirm=${() => onRollOut(one.version)}
        question=${`Compare version ${one.version} of ${domain} with the live version on copies of 10 % of the requests? The live version answers.`} />`}
      <button type="button" class="small secondary" onClick=${() => onDownload(one.version)}>Download</button>
      ${!one.is_live && one.version !== candidate && html`<${Confirm} label="Delete" kind="outline" question=${`Delete version ${one.version} of ${domain}?`} onConfirm=${() => onDelete(one.version)} />`}
    </td>
  </tr>`;
}

function Domain({ domain, candidate, refreshDomains }) {
  const [versions, setVersions] = useState([]);
  const [history, setHistory] = useState([]);
  const [error, setError] = useState(null);
  const load = async () => {
    const [found, past] = await Promise.all([
      getJson(domainPath(domain, "/versions")), getJson(domainPath(domain, "/history"))]);
    setVersions([...found.versions].reverse());
    setHistory([...past.history].reverse());
  };
  const run = (work) => async (...values) => {
    setError(null);
    try {
      await work(...values);
      await Promise.all([load(), refreshDomains()]);
    } catch (problem) { setError(problem); }
  };
  useEffect(() => { run(async () => {})(); }, [domain, candidate]);
  const activate = run((version) => call(domainPath(domain, "/live"), { method: "PUT", json: { version } }));
  const remove = run((version) => call(domainPath(domain, `/versions/${version}`), { method: "DELETE" }));
  const rollOut = run((version) => call(domainPath(domain, "/rollout"), { method: "POST", json: { version } }));
  const stop = run(() => call(domainPath(domain, "/rollout"), { method: "DELETE" }));
  const rollback = run(() => call(domainPath(domain, "/rollback"), { method: "POST" }));
  const download = run(async (version) => {
    const blob = await (await call(domainPath(domain, `/versions/${version}/content`))).blob();
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${domain}-${version}.safetensors` });
    link.click();
    URL.revokeObjectURL(link.href);
  });
  return html`<section aria-label=${domain}>
    <h3>${domain}</h3>
    <${ErrorNote} error=${error} />
    ${candidate && html`<${Rollout} ...${{ domain, candidate }} onStop=${stop} onActivate=${activate} onEnded=${run(async () => {})} />`}
    <div class="overflow-auto"><table>
      <thead><tr><th scope="col">version</th><th scope="col">digest</th><th scope="col">stored</th><th scope="col">signed by</th><th scope="col">made from</th><th scope="col">actions</th></tr></thead>
      <tbody>${versions.map((one) => html`<${Version} key=${one.version} ...${{ domain, one, candidate }} onRollOut=${rollOut}
        onActivate=${activate} onDelete=${remove} onDownload=${download} />`)}</tbody>
    </table></div>
    <${Confirm} label="Roll back" question=${`Make the previously live version of ${domain} live again?`} onConfirm=${rollback} />
    <${Differences} domain=${domain} versions=${versions} />
    <${Upload} domain=${domain} onDone=${run(async () => {})} />
    <details><summary>History</summary><div class="overflow-auto"><table>
      <thead><tr><th scope="col">time</th><th scope="col">action</th><th scope="col">from</th><th scope="col">to</th><th scope="col">by</th></tr></thead>
      <tbody>${history.map((one) => html`<tr key=${one.seq}><td>${when(one.at)}</td><td>${one.action}${one.detail ? `: ${one.detail}` : ""}</td>
        <td>${one.from_version ?? "-"}</td><td>${one.to_version ?? "-"}</td><td>${one.actor || "-"}</td></tr>`)}</tbody>
    </table></div></details>
  </section>`;
}

export function Domains({ domains, initialDomain, refreshDomains }) {
  const names = ["", ...domains.map((one) => one.domain)];
  const [name, setName] = useState([initialDomain || recall("domains", ""), ""].find((one) => names.includes(one)));
  useEffect(() => remember("domains", name), [name]);
  const [fresh, setFresh] = useState("");
  return html`
    <div class="overflow-auto"><table>
      <thead><tr><th scope="col">domain</th><th scope="col">state</th><th scope="col">live version</th><th scope="col">classes</th><th scope="col">live since</th></tr></thead>
      <tbody>${domains.map((one) => html`<tr key=${one.domain}>
        <th scope="row"><button type="button" class="small outline" aria-pressed=${one.domain === name} onClick=${() => setName(one.domain)}>${one.domain}</button></th>
        <td>${one.state}${one.error ? ` (${one.error})` : ""}</td><td>${one.version ?? "-"}${one.candidate ? ` (rollout of ${one.candidate})` : ""}</td><td>${one.n_classes ?? "-"}</td>
        <td>${one.live_since ? when(one.live_since) : "-"}</td></tr>`)}</tbody>
    </table></div>
    <details><summary>Upload the first bundle of another domain</summary>
      <label>Domain of the bundle <input value=${fresh} onInput=${(event) => setFresh(event.target.value.trim())} /></label>
      ${fresh && html`<${Upload} key=${fresh} domain=${fresh} onDone=${async () => { await refreshDomains(); setName(fresh); }} />`}
    </details>
    ${name && html`<${Domain} key=${name} domain=${name} candidate=${domains.find((one) => one.domain === name)?.candidate} refreshDomains=${refreshDomains} />`}`;
}
