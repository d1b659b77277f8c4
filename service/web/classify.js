// The tab "Classify": pictures from files, the clipboard or a camera, for one or several domains side by side.
import { html, useEffect, useRef, useState } from "./preact.js";
import { getJson, withRetries } from "./api.js";
import { DropArea, ErrorNote, Predictions, recall, remember, shortDigest, usePaste } from "./parts.js";

const MAX_RUNNING = 4;
const RATES = ["", "0.01", "0.05", "0.1"];
const TOP_K = ["1", "3", "5", "10"];
const TYPING_MS = 400;

// { file, url, answers }: in memory, also while another tab is shown; `answers` is by domain, version and settings.
let kept = [];

// A queue, so that a hundred dropped pictures do not open a hundred requests.
const waiting = [];
let nRunning = 0;
async function inTurn(work, signal) {
  if (nRunning >= MAX_RUNNING) await new Promise((resolve) => { waiting.push(resolve); });
  nRunning += 1;
  try {
    signal.throwIfAborted();
    return await work();
  } finally {
    nRunning -= 1;
    waiting.shift()?.();
  }
}

function classify(file, domain, { labels, rate, topK }, signal) {
  const query = { top_k: topK };
  if (labels) query.labels = labels;
  else if (rate) query.abstain = rate;
  const send = () => getJson(`classify/${encodeURIComponent(domain)}`, { method: "POST", body: file, query, signal });
  return inTurn(() => withRetries(send), signal);
}

// The answer for the current settings; until it arrives, the previous one.
function Answer({ picture, domain, version, options }) {
  const key = JSON.stringify([domain, version, options]);
  const [shown, setShown] = useState({});
  useEffect(() => {
    const stale = new AbortController();
    const show = (found) => {
      if (stale.signal.aborted) return;
      if (found.answer) picture.answers.set(key, found.answer);
      setShown({ key, ...found });
    };
    if (picture.answers.has(key)) show({ answer: picture.answers.get(key) });
    else classify(picture.file, domain, options, stale.signal).then((answer) => show({ answer }), (error) => show({ error }));
    return () => stale.abort();
  }, [key]);
  const { answer, error } = shown;
  const result = answer?.results[0];
  return html`<div class=${`answer ${shown.key ? "answered" : ""}`} aria-busy=${shown.key !== key}>
    <h4>${domain}</h4>
    <${ErrorNote} error=${error} />
    ${result?.abstained && html`<p><mark>Abstained</mark> no class is certain enough</p>`}
    ${result && html`<${Predictions} predictions=${result.predictions} />
      ${result.notes.length > 0 && html`<p>Converted: ${result.notes.join(", ")}</p>`}
      <small>version ${answer.version}${answer.is_candidate ? " (candidate)" : ""}, <code>${shortDigest(answer.digest)}</code>, ${answer.timing_ms.total.toFixed(0)} ms</small>`}
  </div>`;
}

function Picture({ picture, chosen, options }) {
  return html`<article class="picture">
    <img src=${picture.url} alt=${picture.file.name} />
    <div><p class="name">${picture.file.name}</p>
      <div class="answers">${chosen.map(({ domain, version }) => html`<${Answer} key=${domain} ...${{ picture, domain, version, options }} />`)}</div>
    </div>
  </article>`;
}

function Camera({ onPicture }) {
  const [stream, setStream] = useState(null);
  const [isReady, setReady] = useState(false);
  const [error, setError] = useState(null);
  const video = useRef();
  useEffect(() => {
    if (stream) video.current.srcObject = stream;
    return () => { setReady(false); stream?.getTracks().forEach((track) => track.stop()); };
  }, [stream]);
  const start = async () => {
    try {
      setStream(await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } }));
      setError(null);
    } catch {
      setError(new Error("No camera: allow its use in the browser; browsers allow it on https and localhost only."));
    }
  };
  const take = () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.current.videoWidth;
    canvas.height = video.current.videoHeight;
    canvas.getContext("2d").drawImage(video.current, 0, 0);
    canvas.toBlob((blob) => onPicture(new File([blob], `camera ${new Date().toLocaleTimeString()}.jpg`, { type: blob.type })), "image/jpeg", 0.95);
  };
  return html`<div>
    ${stream
      ? html`<video ref=${video} autoplay muted playsinline onLoadedData=${() => setReady(true)}></video>
        <div role="group"><button type="button" disabled=${!isReady} onClick=${take}>Take a picture</button>
        <button type="button" class="secondary" onClick=${() => setStream(null)}>Stop the camera</button></div>`
      : html`<button type="button" class="secondary" onClick=${start}>Use a camera</button>`}
    <${ErrorNote} error=${error} />
  </div>`;
}

// The domain of the address, those chosen last in this browser tab, or the one that went live last.
function firstChoice(live, initialDomain) {
  const names = live.map((one) => one.domain);
  const last = initialDomain ? [initialDomain] : recall("classify", []);
  const known = last.filter((name) => names.includes(name));
  if (known.length) return known;
  const newest = [...live].sort((a, b) => b.live_since.localeCompare(a.live_since));
  return newest.slice(0, 1).map((one) => one.domain);
}

export function Classify({ domains, initialDomain }) {
  const live = domains.filter((one) => one.version);
  const [names, setNames] = useState(firstChoice(live, initialDomain));
  const [typed, setTyped] = useState("");
  const [labels, setLabels] = useState("");
  const [rate, setRate] = useState("");
  const [topK, setTopK] = useState("3");
  const [pictures, setPictures] = useState(kept);
  const keep = (all) => { kept = all; setPictures(all); };
  const finishTyping = () => setLabels(typed.split(",").map((one) => one.trim()).filter(Boolean).join(","));
  useEffect(() => {
    const timer = setTimeout(finishTyping, TYPING_MS);
    return () => clearTimeout(timer);
  }, [typed]);
  useEffect(() => { if (initialDomain) remember("classify", names); }, []);
  const add = (files) => {
    if (!names.length) return;
    finishTyping();
    remember("classify", names);
    const added = files.map((file) => ({ file, url: URL.createObjectURL(file), answers: new Map() }));
    keep([...added, ...kept]);
  };
  const clear = () => {
    pictures.forEach((one) => URL.revokeObjectURL(one.url));
    keep([]);
  };
  usePaste(add);
  if (!live.length) return html`<p>No domain is live yet. Create one under <a href="#teach">Teach</a>, or upload a bundle under <a href="#domains">Domains</a>.</p>`;
  const toggle = (name) => {
    const chosenNow = names.includes(name) ? names.filter((one) => one !== name) : [...names, name];
    setNames(chosenNow);
    remember("classify", chosenNow);
  };
  const chosen = names.flatMap((name) => live.filter((one) => one.domain === name));
  return html`
    <fieldset class="row"><legend>Domains</legend>
      ${live.map(({ domain }) => html`<label key=${domain}>
        <input type="checkbox" checked=${names.includes(domain)} onChange=${() => toggle(domain)} /> ${domain}</label>`)}
    </fieldset>
    <div class="grid">
      <div><label>Other labels
        <input value=${typed} onInput=${(event) => setTyped(event.target.value)} placeholder="cat, dog" aria-describedby="labels-note" /></label>
        <small id="labels-note">Optional, separated by commas: classify among these instead of the domain's classes.</small>
      </div>
      <div><label>Abstain
        <select value=${rate} disabled=${typed.trim() !== ""} onChange=${(event) => setRate(event.target.value)}>
          ${RATES.map((one) => html`<option value=${one}>${one ? `least certain ${100 * one} %` : "never"}</option>`)}
        </select></label>
        <small>For domains that were fitted to examples.</small>
      </div>
      <label>Classes shown
        <select value=${topK} onChange=${(event) => setTopK(event.target.value)}>
          ${TOP_K.map((one) => html`<option value=${one}>${one}</option>`)}
        </select></label>
    </div>
    <${DropArea} onFiles=${add} id="classify-files">
      <strong>Drop or paste pictures here, or click to choose</strong> <small>JPEG, PNG or WebP</small>
    <//>
    <${Camera} onPicture=${(file) => add([file])} />
    ${!chosen.length && html`<p role="alert" class="error">Choose at least one domain.</p>`}
    <section aria-live="polite" aria-label="results">
      ${pictures.map((picture) => html`<${Picture} key=${picture.url} ...${{ picture, chosen, options: { labels, rate, topK } }} />`)}
    </section>
    ${pictures.length > 0 && html`<button type="button" class="small secondary" onClick=${clear}>Remove all pictures</button>`}`;
}
