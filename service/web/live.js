// The tab "Live": charts from the Prometheus metrics at /metrics, read every two seconds.
import { html, useEffect, useRef, useState } from "./preact.js";
import { call } from "./api.js";
import { ErrorNote } from "./parts.js";

const EVERY_MS = 2000;
const N_POINTS = 150;
const COLOURS = ["#2a78d0", "#c9552b", "#3a9a5b"];
const SAMPLE = /^(caspl_\w+)(?:\{(.*)\})? (\S+)$/;

// Sums of all series, by name and, for histograms, by upper bound.
export function parseMetrics(text) {
  const sums = new Map();
  const add = (name, value) => sums.set(name, (sums.get(name) ?? 0) + value);
  for (const line of text.split("\n")) {
    const match = SAMPLE.exec(line);
    if (!match) continue;
    const [, name, labels = "", value] = match;
    add(name, Number(value));
    for (const [, label, content] of labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) add(`${name}{${label}=${content}}`, Number(value));
  }
  return sums;
}

// The quantile of the observations between two readings of a histogram, in its unit; null without any.
export function quantile(before, now, name, share) {
  const bounds = [...now.keys()].map((key) => key.match(/^(\w+)_bucket\{le=(.*)\}$/))
    .filter((match) => match?.[1] === name)
    .map((match) => [match[2] === "+Inf" ? Infinity : Number(match[2]), now.get(match[0]) - (before.get(match[0]) ?? 0)])
    .sort(([a], [b]) => a - b);
  const total = bounds.at(-1)?.[1] ?? 0;
  if (!total) return null;
  const at = bounds.findIndex(([, count]) => count >= share * total);
  const [low, nBelow] = at > 0 ? bounds[at - 1] : [0, 0];
  const [high, nUpTo] = bounds[at];
  return high === Infinity ? low : low + (high - low) * ((share * total - nBelow) / (nUpTo - nBelow || 1));
}

const CHARTS = [
  ["Requests per second", [
    ["answered", (a, b, s) => rate(a, b, s, "caspl_http_requests_total") - rate(a, b, s, "caspl_errors_total")],
    ["errors", (a, b, s) => rate(a, b, s, "caspl_errors_total")]]],
  ["Images per second", [["images", (a, b, s) => rate(a, b, s, "caspl_images_total{result=answered}")]]],
  ["Images in the queue", [["queue", (a, b) => b.get("caspl_queue_rows") ?? 0]]],
  ["Latency in ms", [
    ["p50", (a, b) => milliseconds(quantile(a, b, "caspl_request_duration_seconds", 0.5))],
    ["p99", (a, b) => milliseconds(quantile(a, b, "caspl_request_duration_seconds", 0.99))]]],
  ["Device busy in %", [["busy", (a, b, s) => 100 * rate(a, b, s, "caspl_device_busy_seconds_total")]]],
];

const rate = (before, now, seconds, name) => Math.max(0, (now.get(name) ?? 0) - (before.get(name) ?? 0)) / seconds;
const milliseconds = (seconds) => (seconds === null ? null : 1000 * seconds);

function Chart({ title, names, data }) {
  const box = useRef();
  const plot = useRef();
  useEffect(() => {
    const colour = getComputedStyle(box.current).color;
    const axis = { stroke: colour, grid: { stroke: "#8884" }, ticks: { stroke: "#8884" } };
    const size = () => ({ width: box.current.clientWidth, height: 180 });
    plot.current = new window.uPlot({
      ...size(),
      legend: { show: names.length > 1 },
      axes: [axis, axis],
      scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] } },
      series: [{}, ...names.map((label, index) => ({ label, stroke: COLOURS[index], width: 2 }))],
    }, data, box.current);
    const resizing = new ResizeObserver(() => plot.current.setSize(size()));
    resizing.observe(box.current);
    return () => { resizing.disconnect(); plot.current.destroy(); };
  }, []);
  useEffect(() => plot.current?.setData(data), [data]);
  const last = names.map((name, index) => `${name} ${format(data[index + 1].at(-1))}`).join(", ");
  return html`<figure class="chart"><figcaption>${title} <small>(${last})</small></figcaption><div ref=${box}></div></figure>`;
}

const format = (value) => (value == null ? "-" : value.toFixed(value < 10 ? 1 : 0));

export function Live() {
  const [points, setPoints] = useState([]);
  const [error, setError] = useState(null);
  useEffect(() => {
    let before = null;
    let beforeMs = 0;
    const read = async () => {
      if (document.hidden) return;
      try {
        const now = parseMetrics(await (await call("metrics")).text());
        const nowMs = performance.now();
        const seconds = (nowMs - beforeMs) / 1000;
        const earlier = before;
        if (earlier) {
          const values = CHARTS.flatMap(([, series]) => series.map(([, measure]) => measure(earlier, now, seconds)));
          setPoints((all) => [...all, [Date.now() / 1000, ...values]].slice(-N_POINTS));
        }
        before = now;
        beforeMs = nowMs;
        setError(null);
      } catch (problem) { setError(problem); }
    };
    read();
    const timer = setInterval(read, EVERY_MS);
    return () => clearInterval(timer);
  }, []);
  const column = (index) => points.map((point) => point[index]);
  let at = 1;
  return html`<${ErrorNote} error=${error} />
    ${points.length < 2 && !error && html`<p aria-busy="true">Measuring</p>`}
    ${points.length > 1 && html`<div class="charts">${CHARTS.map(([title, series]) => {
      const first = at;
      at += series.length;
      const data = [column(0), ...series.map((_, index) => column(first + index))];
      return html`<${Chart} key=${title} title=${title} names=${series.map(([name]) => name)} data=${data} />`;
    })}</div>`}`;
}
