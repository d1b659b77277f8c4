// The tab "Teach": upload pictures, label many at once, watch the report, make the fit live.
import { html, useEffect, useRef, useState } from "./preact.js";
import { call, domainPath, getJson, withRetries } from "./api.js";
import { Groups, LabelledExamples } from "./examples.js";
import { DropArea, ErrorNote, percent, plural, recall, remember, usePaste } from "./parts.js";
import { Report } from "./report.js";

const BATCH = 16;
const MAX_UNGROUPED = 100;
const MAX_UNCERTAIN = 200;
const REFRESH_MS = 400;

const linesOf = (text) => text.split(/[\n,]/).map((one) => one.trim()).filter(Boolean);

function NewDomain({ domains, onCreated }) {
  const [name, setName] = useState("");
  const [classes, setClasses] = useState("");
  const [boostedBy, setBoostedBy] = useState("");
  const [error, setError] = useState(null);
  const create = async (event) => {
    event.preventDefault();
    setError(null);
    try {
      const json = { classes: linesOf(classes), boosted_by: boostedBy || null };
      await call(domainPath(name), { method: "PUT", json });
      onCreated(name);
    } catch (problem) {
      setError(problem.code === "domain_exists" ? { message: `The domain ${name} exists. Choose it in the list above, or another name.` } : problem);
    }
  };
  return html`<form onSubmit=${create}>
    <div class="grid">
      <div><label>Name <input required value=${name} onInput=${(event) => setName(event.target.value)}
        pattern="[a-z][a-z0-9]*(-[a-z0-9]+)*" maxlength="64" title="Lower-case letters, digits and hyphens." aria-describedby="name-note" /></label>
        <small id="name-note">Lower-case letters, digits and hyphens, such as screws-line-2.</small></div>
      <div><label>Prompts <select value=${boostedBy} aria-describedby="prompts-note" onChange=${(event) => setBoostedBy(event.target.value)}>
        <option value="">none: the plain backbone</option>
        ${domains.filter((one) => one.has_boosting).map((one) => html`<option value=${one.domain}>boosting prompts of ${one.domain}</option>`)}
      </select></label>
        <small id="prompts-note">Those of a domain with the same kind of pictures; otherwise none.</small></div>
    </div>
    <label>Classes <textarea required rows="3" value=${classes} onInput=${(event) => setClasses(event.target.value)}
      placeholder="hex bolt, wood screw, washer" aria-describedby="classes-note"></textarea></label>
      <small id="classes-note">Separated by commas or lines. The domain is live at once with these names alone; more classes can follow.</small>
    <${ErrorNote} error=${error} />
    <button type="submit">Create the domain</button>
  </form>`;
}

function Upload({ domain, classes, onAdded }) {
  const [label, setLabel] = useState("");
  const [progress, setProgress] = useState(null);
  const [rejected, setRejected] = useState([]);
  const [known, setKnown] = useState({ exists: 0, relabelled: 0 });
  const [error, setError] = useState(null);
  const add = async (files) => {
    setError(null);
    setRejected([]);
    setKnown({ exists: 0, relabelled: 0 });
    setProgress([0, files.length]);
    try {
      for (let start = 0; start < files.length; start += BATCH) {
        const part = files.slice(start, start + BATCH);
        const answer = await withRetries(() => {
          const body = new FormData();
          for (const file of part) body.append(label || "unlabelled", file, file.name);
          return getJson(domainPath(domain, "/examples"), { method: "POST", body });
        }).catch((problem) => {
          if (problem.code === "images_rejected") return { examples: problem.body.errors.map((one) => ({ index: one.index, error: one })) };
          if (part.length === 1 && problem.code?.startsWith("image_")) return { examples: [{ index: 0, error: problem.body }] };
          throw problem;
        });
        const bad = answer.examples.filter((one) => one.error).map((one) => `${part[one.index].name}: ${one.error.title}: ${one.error.detail}`);
        if (bad.length) setRejected((before) => [...before, ...bad]);
        const count = (status) => answer.examples.filter((one) => one.status === status).length;
        setKnown((before) => ({ exists: before.exists + count("exists"), relabelled: before.relabelled + count("relabelled") }));
        setProgress([Math.min(start + BATCH, files.length), files.length]);
        await onAdded(label);
      }
      setProgress(null);
    } catch (problem) { setError(problem); }  // the progress shows how many were sent
  };
  usePaste(add);
  return html`<section aria-label="add pictures">
    <label>New pictures are
      <select value=${label} onChange=${(event) => setLabel(event.target.value)}>
        <option value="">not labelled yet</option>
        ${classes.map((name) => html`<option value=${name}>${name}</option>`)}
      </select></label>
    <${DropArea} onFiles=${add} id="teach-files">
      <strong>Drop or paste pictures of ${domain} here, or click to choose</strong> <small>JPEG, PNG or WebP</small>
    <//>
    ${progress && html`<label>${progress[0]} of ${plural(progress[1], "picture")} sent
      <progress value=${progress[0]} max=${progress[1]}></progress></label>`}
    ${known.exists + known.relabelled > 0 && html`<p role="status">Added before: ${plural(known.exists, "picture")} unchanged, ${plural(known.relabelled, "picture")} with a new label.</p>`}
    ${rejected.length > 0 && html`<details open role="alert"><summary>${plural(rejected.length, "picture")} not added</summary>
      <ul>${rejected.map((one) => html`<li>${one}</li>`)}</ul></details>`}
    <${ErrorNote} error=${error} />
  </section>`;
}

function LabelBar({ n, classes, counts, onLabel, onClear }) {
  const [name, setName] = useState("");
  const submit = (event) => {
    event.preventDefault();
    if (name.trim()) onLabel(name.trim());
    setName("");
  };
  return html`<form class="label-bar" aria-label="label the selected pictures" onSubmit=${submit}>
    <span aria-live="polite"><strong>${n}</strong> selected</span>
    ${classes.map((one) => html`<button type="button" class="small" key=${one} disabled=${!n} onClick=${() => onLabel(one)}>${one} (${counts[one] ?? 0})</button>`)}
    <input value=${name} onInput=${(event) => setName(event.target.value)} placeholder="new class" aria-label="new class" />
    <button type="submit" class="small secondary" disabled=${!n || !name.trim()}>Label as new class</button>
    <button type="button" class="small secondary" disabled=${!n} onClick=${onClear}>Clear selection</button>
  </form>`;
}

// The last change of labels, { text }, with a button to undo it; also Ctrl+Z outside of text fields.
function Undo({ last, onUndo }) {
  useEffect(() => {
    const press = (event) => {
      if (!last || event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.target.closest("input, textarea")) return;
      event.preventDefault();
      onUndo();
    };
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  }, [last, onUndo]);
  return html`<div class="undo" role="status">${last && html`<span>${last.text}</span>
    <button type="button" class="small" title="Ctrl+Z" aria-keyshortcuts="Control+Z" onClick=${onUndo}>Undo</button>`}</div>`;
}

function MakeLive({ domain, isReady, onLive }) {
  const [state, setState] = useState({});
  const fit = async () => {
    setState({ isBusy: true });
    try {
      const made = await getJson(domainPath(domain, "/fit"), { method: "POST", json: { activate: true } });
      setState({ made });
      await onLive();
    } catch (error) { setState({ error }); }
  };
  return html`<div>
    <button type="button" aria-busy=${state.isBusy} disabled=${!isReady || state.isBusy} onClick=${fit}>Make live</button>
    ${state.made && html`<p role="status">Version ${state.made.version} of ${domain} is live. <a href=${`#classify/${domain}`}>Classify with it</a></p>`}
    <${ErrorNote} error=${state.error} />
  </div>`;
}

async function similarGroups(domain) {
  const found = await getJson(domainPath(domain, "/examples/groups"));
  const singles = found.not_grouped.slice(0, MAX_UNGROUPED).map((id) => [id]);
  return [...found.groups, ...singles].map((ids, at) => ({ name: `Group ${at + 1}`, ids }));
}

// By the predicted class; the least certain pictures first.
async function uncertainGroups(domain) {
  const query = { labelled: "false", order: "uncertain", limit: String(MAX_UNCERTAIN) };
  const { examples } = await getJson(domainPath(domain, "/examples"), { query });
  const byClass = new Map();
  for (const one of examples) byClass.set(one.predicted, [...(byClass.get(one.predicted) ?? []), one.id]);
  return [...byClass.entries()].map(([name, ids]) => ({ name: `Predicted as ${name}`, ids }));
}

function TeachDomain({ domain, refreshDomains }) {
  const [classes, setClasses] = useState([]);
  const [groups, setGroups] = useState([]);
  const [order, setOrder] = useState("similar");
  const [counts, setCounts] = useState({ labelled: 0, unlabelled: 0, by_label: {} });
  const [selected, setSelected] = useState(new Set());
  const [fit, setFit] = useState(null);
  const [error, setError] = useState(null);
  const [changes, setChanges] = useState(0);
  const [last, setLast] = useState(null);  // the last labels, to undo
  const timer = useRef();

  const loadCounts = async () => {
    try {
      const [detail, page] = await Promise.all([
        getJson(domainPath(domain)), getJson(domainPath(domain, "/examples"), { query: { limit: "1" } })]);
      setClasses([...new Set([...detail.classes, ...Object.keys(page.counts.by_label)])]);
      setCounts({ ...page.counts, by_label: Object.assign(Object.create(null), page.counts.by_label) });  // a class may be named "constructor"
      setError(null);
    } catch (problem) { setError(problem); }
  };
  const loadGroups = async () => {
    try {
      setGroups(order === "similar" ? await similarGroups(domain) : await uncertainGroups(domain));
    } catch (problem) { setError(problem); }
  };
  const loadReport = async () => {
    try {
      setFit(await getJson(domainPath(domain, "/fit")));
    } catch (problem) {
      setFit(null);
      if (problem.code !== "too_few_examples") setError(problem);
    }
  };
  const changed = async () => {
    setChanges((n) => n + 1);
    clearTimeout(timer.current);
    timer.current = setTimeout(loadReport, REFRESH_MS);
    await loadCounts();
  };
  const added = () => Promise.all([changed(), loadGroups()]);
  const removed = () => { setLast(null); return added(); };
  // The same picture is one example, so pictures with a label may replace the labels that "Undo" would restore.
  const uploaded = (label) => (label ? removed() : added());
  useEffect(() => { changed(); return () => clearTimeout(timer.current); }, [domain]);
  useEffect(() => { loadGroups(); }, [domain, order]);

  const patch = (json) => call(domainPath(domain, "/examples"), { method: "PATCH", json });
  // Gives examples, each { id, label, is_confirmed }, a label; null removes it.
  const relabel = async (examples, label, confirmed) => {
    const ids = examples.map((one) => one.id);
    try {
      await patch({ ids, label, confirmed });
      const labelled = label === null ? "The label was removed" : `${confirmed ? "Confirmed as" : "Labelled"} ${label}`;
      setLast({ examples, text: `${labelled}: ${plural(ids.length, "picture")}` });
      setSelected((now) => new Set([...now].filter((id) => !ids.includes(id))));
      // Labelled pictures leave their groups; nothing is grouped again meanwhile.
      setGroups((all) => all.map((group) => ({ ...group, ids: group.ids.filter((id) => !ids.includes(id)) }))
        .filter((group) => group.ids.length));
      await (label === null ? added() : changed());
    } catch (problem) { setError(problem); }
  };
  const undo = async () => {
    try {
      const stateOf = (one) => JSON.stringify({ label: one.label, confirmed: Boolean(one.is_confirmed) });
      for (const state of new Set(last.examples.map(stateOf))) {
        const ids = last.examples.filter((one) => stateOf(one) === state).map((one) => one.id);
        await patch({ ids, ...JSON.parse(state) });
      }
      setLast(null);
      await added();
    } catch (problem) { setError(problem); }
  };
  const nTaught = fit?.report.classes.filter((one) => one.n_examples).length;
  const report = nTaught > 1 ? fit.report : null;
  const nShown = groups.reduce((n, group) => n + group.ids.length, 0);
  return html`
    <${Upload} domain=${domain} classes=${classes} onAdded=${uploaded} />
    <${ErrorNote} error=${error} />
    ${groups.length > 0 && html`<section aria-label="pictures without a label">
      <h3>${plural(counts.unlabelled, "picture")} to label</h3>
      <p>Select pictures or whole groups, then click a class. Labelled pictures leave their group.
        ${nShown < counts.unlabelled && html` ${nShown} are shown; label some and refresh to get others.`}</p>
      <div role="group">
        <select aria-label="order of the pictures" value=${order} onChange=${(event) => setOrder(event.target.value)}>
          <option value="similar">groups of similar pictures</option>
          <option value="uncertain" disabled=${!fit}>least certain first, by predicted class</option>
        </select>
        <button type="button" class="secondary" onClick=${loadGroups}>Refresh</button>
      </div>
      <${LabelBar} n=${selected.size} classes=${classes} counts=${counts.by_label}
        onLabel=${(label) => relabel([...selected].map((id) => ({ id, label: null })), label)} onClear=${() => setSelected(new Set())} />
      <${Groups} domain=${domain} groups=${groups} selected=${selected} onSelect=${setSelected} />
    </section>`}
    <section aria-label="report">
      <h3>Report</h3>
      ${report
        ? html`<p>${plural(report.n_examples, "labelled picture")}: accuracy <strong>${percent(report.accuracy.rate)}</strong> (leave-one-out),
          of the text features (class names alone) ${percent(report.text_accuracy)}.</p>
          <${Report} report=${report} domain=${domain} onLabel=${relabel} />`
        : html`<p>Label pictures of at least two classes to get a report.</p>`}
      <${MakeLive} domain=${domain} isReady=${Boolean(fit)} onLive=${async () => { await refreshDomains(); await loadReport(); }} />
    </section>
    <${LabelledExamples} ...${{ domain, classes, changes, counts: counts.by_label }} onLabel=${relabel} onRemoved=${removed} />
    <${Undo} last=${last} onUndo=${undo} />`;
}

export function Teach({ domains, initialDomain, refreshDomains }) {
  const names = ["", ...domains.map((one) => one.domain)];
  const [domain, setDomain] = useState([initialDomain || recall("teach", ""), ""].find((name) => names.includes(name)));
  useEffect(() => remember("teach", domain), [domain]);
  const created = async (name) => { await refreshDomains(); setDomain(name); };
  return html`
    <label>Domain <select value=${domain} onChange=${(event) => setDomain(event.target.value)}>
      <option value="">New domain</option>
      ${domains.map((one) => html`<option value=${one.domain}>${one.domain}</option>`)}
    </select></label>
    ${domain === ""
      ? html`<${NewDomain} domains=${domains} onCreated=${created} />`
      : html`<${TeachDomain} key=${domain} domain=${domain} refreshDomains=${refreshDomains} />`}`;
}
