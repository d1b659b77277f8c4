// The page: tabs, the API key, and the list of domains that all tabs share.
import { html, render, useCallback, useEffect, useRef, useState } from "./preact.js";
import { getJson, setKey, whenKeyNeeded } from "./api.js";
import { Classify } from "./classify.js";
import { Domains } from "./domains.js";
import { Live } from "./live.js";
import { ErrorNote } from "./parts.js";
import { Teach } from "./teach.js";

const POLL_MS = 5000;
const TABS = { classify: ["Classify", Classify], teach: ["Teach", Teach], domains: ["Domains", Domains], live: ["Live", Live] };

// `#classify/shelf` is the tab Classify with the domain shelf chosen.
const placeOfHash = () => {
  const [tab, domain = ""] = window.location.hash.slice(1).split("/");
  return Object.hasOwn(TABS, tab) ? [tab, domain] : ["classify", ""];
};

function KeyForm({ note, onKey }) {
  const input = useRef();
  const submit = (event) => {
    event.preventDefault();
    setKey(input.current.value);
    onKey();
  };
  return html`<form onSubmit=${submit}>
    <label>API key
      <input ref=${input} type="password" autocomplete="off" spellcheck="false" aria-describedby="key-note" />
    </label>
    <small id="key-note">This service requires an API key. The page keeps it in memory only.</small>
    ${note && html`<p role="alert" class="error">${note}</p>`}
    <button type="submit">Use this key</button>
  </form>`;
}

function App() {
  const [[tab, domain], setPlace] = useState(placeOfHash());
  const [domains, setDomains] = useState(null);
  const [error, setError] = useState(null);
  const [keyNote, setKeyNote] = useState(null);
  const isKeyNeeded = useRef(false);

  const refresh = useCallback(async () => {
    try {
      setDomains((await getJson("domains")).domains);
      setError(null);
    } catch (problem) {
      if (problem.status !== 401) setError(problem);
    }
  }, []);

  useEffect(() => {
    // A rejected key is not sent again until it is changed: the service limits wrong keys.
    whenKeyNeeded((note) => { isKeyNeeded.current = true; setKeyNote(note); });
    const followHash = () => setPlace(placeOfHash());
    window.addEventListener("hashchange", followHash);
    refresh();
    const timer = setInterval(() => { if (!isKeyNeeded.current && !document.hidden) refresh(); }, POLL_MS);
    return () => { clearInterval(timer); window.removeEventListener("hashchange", followHash); };
  }, []);

  const useKey = () => {
    isKeyNeeded.current = false;
    setKeyNote(null);
    refresh();
  };
  const [, Tab] = TABS[tab];
  return html`
    <header>
      <nav aria-label="main">
        <ul><li><strong>CasPL Serve</strong></li></ul>
        <ul>
          ${Object.entries(TABS).map(([name, [title]]) => html`<li key=${name}>
            <a href=${`#${name}`} aria-current=${name === tab ? "page" : undefined}>${title}</a></li>`)}
          <li><a href="docs">API</a></li>
        </ul>
      </nav>
    </header>
    <main>
      ${keyNote !== null && html`<${KeyForm} note=${keyNote} onKey=${useKey} />`}
      <${ErrorNote} error=${error} />
      ${domains && keyNote === null && html`<${Tab} key=${domain} initialDomain=${domain} domains=${domains} refreshDomains=${refresh} />`}
    </main>`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
