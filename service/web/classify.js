// The tab "Classify": pictures from files, the clipboard or a camera, for one or several domains side by side.
import { html, useEffect, useRef, useState } from "./preact.js";
import { getJson, withRetries } from "./api.js";
import { DropArea, ErrorNote, Predictions, shortDigest, usePaste } from "./parts.js";

const MAX_RUNNING = 4;
const RATES = ["", "0.01", "0.05", "0.1"];

// A queue, so that a hundred dropped pictures do not open a hundred requests.
const waiting = [];
let nRunning = 0;
async function inTurn(work) {
  if (nRunning >= MAX_RUNNING) await new Promise((resolve) => { waiting.push(resolve); });
  nRunning += 1;
  try {
    return await work();
  } finally {
    nRunning -= 1;
    waiting.shift()?.();
  }
}

function classify(file, domain, { labels, rate, topK }) {
  const query = { top_k: topK };
  if (labels.trim()) query.labels = labels;
  else if (rate) query.abstain = rate;
  return inTurn(() => withRetries(() => getJson(`classify/${encodeURIComponent(domain)}`, { method: "POST", body: file, query })));
}

function Answer({ file, domain, options }) {
  const [answer, setAnswer] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => { classify(file, domain, options).then(setAnswer, setError); }, []);
  const result = answer?.results[0];
  return html`<div class="answer" aria-busy=${!answer && !error}>
    <h4>${domain}</h4>
    <${ErrorNote} error=${error} />
    ${result?.abstained && html`<p><mark>Abstained</mark> no class is certain enough</p>`}
    ${result && html`<${Predictions} predictions=${result.predictions} />
      ${result.notes.length > 0 && html`<p>Converted: ${result.notes.join(", ")}</p>`}
      <small>version ${answer.version}, <code>${shortDigest(answer.digest)}</code>, ${answer.timing_ms.total.toFixed(0)} ms</small>`}
  </div>`;
}

function Picture({ file, chosen, options }) {
  const [url] = useState(() => URL.createObjectURL(file));
  return html`<article class="picture">
    <img src=${url} alt=${file.name} />
    <div><p class="name">${file.name}</p>
      <div class="answers">${chosen.map((domain) => html`<${Answer} key=${domain} ...${{ file, domain, options }} />`)}</div>
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

export function Classify({ domains, initialDomain }) {
  const live = domains.filter((one) => one.version).map((one) => one.domain);
  const [chosen, setChosen] = useState(live.includes(initialDomain) ? [initialDomain] : live.slice(0, 1));
  const [labels, setLabels] = useState("");
  const [rate, setRate] = useState("");
  const [pictures, setPictures] = useState([]);
  const add = (files) => {
    const options = { labels, rate, topK: 3 };
    const added = files.map((file) => ({ file, chosen, options, id: crypto.randomUUID?.() ?? Math.random() }));
    if (chosen.length) setPictures((before) => [...added, ...before]);
  };
  usePaste(add);
  if (!live.length) return html`<p>No domain is live yet. Create one under <a href="#teach">Teach</a>, or upload a bundle under <a href="#domains">Domains</a>.</p>`;
  const toggle = (name) => setChosen(chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name]);
  return html`
    <fieldset class="row"><legend>Domains</legend>
      ${live.map((name) => html`<label key=${name}>
        <input type="checkbox" checked=${chosen.includes(name)} onChange=${() => toggle(name)} /> ${name}</label>`)}
    </fieldset>
    <div class="grid">
      <div><label>Other labels
        <input value=${labels} onInput=${(event) => setLabels(event.target.value)} placeholder="cat, dog" aria-describedby="labels-note" /></label>
        <small id="labels-note">Optional, separated by commas: classify among these instead of the domain's classes.</small>
      </div>
      <div><label>Abstain
        <select value=${rate} disabled=${labels.trim() !== ""} onChange=${(event) => setRate(event.target.value)}>
          ${RATES.map((one) => html`<option value=${one}>${one ? `least certain ${100 * one} %` : "never"}</option>`)}
        </select></label>
        <small>For domains that were fitted to examples.</small>
      </div>
    </div>
    <p><small>Domains, labels and the abstention rate apply to the next pictures. Results below do not change.</small></p>
    <${DropArea} onFiles=${add} id="classify-files">
      <strong>Drop or paste pictures here, or click to choose</strong> <small>JPEG, PNG or WebP</small>
    <//>
    <${Camera} onPicture=${(file) => add([file])} />
    ${!chosen.length && html`<p role="alert" class="error">Choose at least one domain.</p>`}
    <section aria-live="polite" aria-label="results">
      ${pictures.map((one) => html`<${Picture} key=${one.id} ...${one} />`)}
    </section>`;
}
