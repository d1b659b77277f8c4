// Elements that several tabs use.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./preact.js";
import { call } from "./api.js";

export const percent = (share, digits = 1) => (share == null ? "-" : `${(100 * share).toFixed(digits)}\u00a0%`);
export const shortDigest = (digest) => (digest ? digest.replace("sha256:", "").slice(0, 12) : "-");
export const when = (iso) => new Date(iso).toLocaleString();
export const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

// Choices of this browser tab, until it is closed; a browser may allow no storage.
export function recall(name, otherwise) {
  try { return JSON.parse(sessionStorage.getItem(`caspl.${name}`)) ?? otherwise; } catch { return otherwise; }
}
export function remember(name, value) {
  try { sessionStorage.setItem(`caspl.${name}`, JSON.stringify(value)); } catch { /* chosen again after a reload */ }
}

export function ErrorNote({ error }) {
  return error ? html`<p role="alert" class="error">${error.message || String(error)}</p>` : null;
}

// The first predictions of an image, as bars.
export function Predictions({ predictions }) {
  return html`<ol class="predictions">
    ${predictions.map((one) => html`<li key=${one.label}>
      <span>${one.label}</span><span class="number">${percent(one.probability)}</span>
      <progress max="1" value=${one.probability} aria-label=${`probability of ${one.label}`}></progress>
    </li>`)}
  </ol>`;
}

// A dropped folder is among the files, but cannot be read as one.
const foldersOf = (items) => [...items].map((one) => one.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory);

// Files from a click, or from a drop anywhere on the page: the browser would open those beside the area in new tabs.
export function DropArea({ onFiles, children, accept = "image/jpeg,image/png,image/webp", isMultiple = true, id }) {
  const [isOver, setOver] = useState(false);
  const [folders, setFolders] = useState([]);
  const latest = useRef(onFiles);
  latest.current = onFiles;
  useLayoutEffect(() => {
    const hasFiles = (event) => event.dataTransfer.types.includes("Files");
    const listeners = {
      dragover: (event) => { if (hasFiles(event)) { event.preventDefault(); setOver(true); } },
      dragleave: (event) => { if (!event.relatedTarget) setOver(false); },
      drop: (event) => {
        if (!hasFiles(event)) return;
        event.preventDefault();
        setOver(false);
        const dropped = foldersOf(event.dataTransfer.items).map((entry) => entry.name);
        setFolders(dropped);
        const files = [...event.dataTransfer.files].filter((file) => !dropped.includes(file.name));
        if (files.length) latest.current(files);
      },
    };
    const each = Object.entries(listeners);
    each.forEach(([name, listener]) => document.addEventListener(name, listener));
    return () => each.forEach(([name, listener]) => document.removeEventListener(name, listener));
  }, []);
  return html`<label class=${`drop ${isOver ? "over" : ""}`} for=${id}>
    ${children}
    <input type="file" id=${id} accept=${accept} multiple=${isMultiple}
      onChange=${(event) => { setFolders([]); onFiles([...event.target.files]); event.target.value = ""; }} />
  </label>
  ${folders.length > 0 && html`<p role="alert" class="error">Folders are not read: ${folders.join(", ")}. Drop the files in them instead.</p>`}`;
}

export function usePaste(onFiles) {
  const latest = useRef(onFiles);
  latest.current = onFiles;
  useLayoutEffect(() => {
    const paste = (event) => {
      const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
      if (files.length) latest.current(files);
    };
    document.addEventListener("paste", paste);
    return () => document.removeEventListener("paste", paste);
  }, []);
}

// Images behind an API key: an <img> sends no Authorization header.
const thumbnails = new Map();

export function Thumbnail({ path, alt }) {
  const [url, setUrl] = useState("");
  useEffect(() => {
    let isGone = false;
    if (!thumbnails.has(path)) {
      const loading = call(path).then((response) => response.blob()).then((blob) => URL.createObjectURL(blob));
      thumbnails.set(path, loading);
      loading.catch(() => thumbnails.delete(path));
    }
    thumbnails.get(path).then((found) => { if (!isGone) setUrl(found); }, () => {});
    return () => { isGone = true; };
  }, [path]);
  return html`<img src=${url || "data:,"} alt=${alt} loading="lazy" />`;
}

export function Confirm({ label, question, onConfirm, kind = "secondary" }) {
  const dialog = useRef();
  return html`
    <button type="button" class=${`${kind} small`} onClick=${() => dialog.current.showModal()}>${label}</button>
    <dialog ref=${dialog}><article>
      <p>${question}</p>
      <footer>
        <button type="button" class="secondary" onClick=${() => dialog.current.close()}>Cancel</button>
        <button type="button" onClick=${() => { dialog.current.close(); onConfirm(); }}>${label}</button>
      </footer>
    </article></dialog>`;
}
