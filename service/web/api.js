// The service's HTTP interface. The API key is kept in memory only.
let key = "";
let onKeyNeeded = () => {};

export class Problem extends Error {
  constructor(status, body, retryAfterS = 1) {
    super(body.detail ? `${body.title}: ${body.detail}` : body.title || `HTTP status ${status}`);
    this.status = status;
    this.code = body.code;
    this.body = body;
    this.retryAfterS = retryAfterS;
  }
}

export function setKey(text) {
  key = text.trim();
}

export function whenKeyNeeded(callback) {
  onKeyNeeded = callback;
}

const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});

async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  const problem = new Problem(response.status, body, Number(response.headers.get("Retry-After")) || 1);
  if (response.status === 401) onKeyNeeded(key ? problem.message : "");
  return problem;
}

export async function call(path, { method = "GET", query, json, body, signal, etag } = {}) {
  const url = query ? `${path}?${new URLSearchParams(query)}` : path;
  const options = { method, signal, headers: headers() };
  if (etag) options.headers["If-Match"] = etag;
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers["Content-Type"] = "application/json";
  } else if (body !== undefined) options.body = body;
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { title: "The service cannot be reached", detail: "check that it is running." });
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

export const getJson = async (path, options) => (await call(path, options)).json();

export const domainPath = (domain, rest = "") => `domains/${encodeURIComponent(domain)}${rest}`;

// fetch reports no progress of an upload, XMLHttpRequest does.
export function upload(path, file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded / event.total);
    request.onerror = () => reject(new Problem(0, { title: "The upload was interrupted", detail: "try again." }));
    request.onload = () => {
      let body = {};
      try { body = JSON.parse(request.responseText); } catch { /* not JSON: only the status is known */ }
      if (request.status < 400) resolve(body);
      else reject(new Problem(request.status, body));
    };
    request.send(file);
  });
}

export async function sleep(milliseconds) {
  return new Promise((resolve) => { setTimeout(resolve, milliseconds); });
}

// Retries while the service is overloaded, after the time that it states.
export async function withRetries(work, maxTries = 8) {
  for (let tried = 1; ; tried += 1) {
    try {
      return await work();
    } catch (error) {
      if (![429, 503].includes(error.status) || tried === maxTries) throw error;
      await sleep(1000 * error.retryAfterS);
    }
  }
}
