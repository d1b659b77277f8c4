// The running rollout of a domain: its figures, and buttons that end it.
import { html, useEffect, useState } from "./preact.js";
import { domainPath, getJson } from "./api.js";
import { Confirm, ErrorNote, percent, plural, when } from "./parts.js";

const POLL_MS = 2000;
const signed = (number) => `${number < 0 ? "\u2212" : "+"}${Math.abs(number).toFixed(3)}`;

function Figures({ found }) {
  const end = found.then === "activate" ? "then the candidate goes live" : "then the comparison continues";
  const answers = found.mode === "canary" ? "the candidate answers" : "the candidate scores copies of";
  return html`
    <p>${found.mode} since ${when(found.started_at)}${found.started_by ? ` by ${found.started_by}` : ""}: ${answers} ${found.percent} % of
      the requests, for at least ${plural(found.min_images, "image")}, ${end}.</p>
    <progress max=${found.min_images} value=${Math.min(found.n_compared, found.min_images)} aria-label="compared images"></progress>
    <dl>
      <dt>compared</dt><dd>${plural(found.n_compared, "image")}${found.n_dropped ? ` (${found.n_dropped} not compared, usually because the device was busy)` : ""}</dd>
      <dt>disagreement</dt><dd>${percent(found.disagreement)}${found.n_failed ? `, ${found.n_failed} failed` : ""} (at most ${percent(found.max_disagreement)})</dd>
      <dt>confidence shift</dt><dd>${found.confidence_shift === null ? "-" : signed(found.confidence_shift)}${
        found.confidence_shift_error === null ? "" : ` \u00b1 ${found.confidence_shift_error.toFixed(3)}`} (at most ${found.max_confidence_shift})</dd>
    </dl>`;
}

export function Rollout({ domain, candidate, onStop, onActivate, onEnded }) {
  const [found, setFound] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    let timer = null;
    let isGone = false;
    const load = async () => {
      try {
        const next = document.hidden ? null : await getJson(domainPath(domain, "/rollout"));
        if (isGone) return;
        if (next) setFound(next);
        setError(null);
      } catch (problem) {
        if (isGone) return;
        if (problem.code === "rollout_not_found") onEnded();
        else setError(problem);
      }
      timer = setTimeout(load, POLL_MS);
    };
    load();
    return () => { isGone = true; clearTimeout(timer); };
  }, [domain, candidate]);
  return html`<section aria-label="rollout">
    <h4>Rollout of version ${candidate}</h4>
    <${ErrorNote} error=${error} />
    ${found && html`<${Figures} found=${found} />`}
    <${Confirm} label="Stop the rollout" question=${`Stop the rollout of version ${candidate}? The live version of ${domain} then answers all requests.`} onConfirm=${onStop} />
    <${Confirm} label="Activate the candidate" question=${`Make version ${candidate} of ${domain} live for all requests?`} onConfirm=${() => onActivate(candidate)} />
  </section>`;
}
