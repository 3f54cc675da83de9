// Keeps what a page shows fresh, and says plainly when it is out of date.
//
// The node tells that something has changed (server-sent events); what is shown is always fetched. One page of a
// browser listens for all of them, because a browser opens few connections to one server. Without events it asks
// every few seconds.

const LIMIT_MS = 8000;
const ASK_MS = 10000;
const ASK_ALONE_MS = 3000;
const REST_MS = 700; // between two changes that are looked at
const SILENCE_MS = 25000; // two heartbeats and a half
const REOPEN_MS = 10000;
const SHARED = "ich-node-changes";

const indicator = document.getElementById("freshness");
const alarm = document.getElementById("alarm");

function fresh(shownAt) {
  indicator.classList.remove("is-lost");
  indicator.querySelector(".freshness-text").textContent = `Updated ${shownAt}`;
  indicator.dataset.shownAt = shownAt;
  if (!alarm.hidden) {
    alarm.hidden = true;
    alarm.textContent = "";
  }
  document.body.classList.remove("is-stale");
}

function lost(why) {
  const since = indicator.dataset.shownAt;
  indicator.classList.add("is-lost");
  indicator.querySelector(".freshness-text").textContent = "Connection lost";
  const words = `${why} What is shown is from ${since} and may be out of date.`;
  if (alarm.hidden || alarm.textContent !== words) {
    alarm.textContent = words;
    alarm.hidden = false;
  }
  document.body.classList.add("is-stale");
}

// Calls `heard` with a version at each event, and with "" when the stream breaks.
function listen(heard) {
  const others = new BroadcastChannel(SHARED);
  others.addEventListener("message", (event) => heard(event.data));
  function tell(version) {
    heard(version);
    others.postMessage(version);
  }
  function lead() {
    let source = null;
    let silence = 0;
    function open() {
      source?.close();
      source = new EventSource("/events");
      for (const kind of ["change", "alive"]) {
        source.addEventListener(kind, (event) => {
          expect(SILENCE_MS);
          tell(event.data);
        });
      }
      source.addEventListener("error", () => {
        tell("");
        if (source.readyState === EventSource.CLOSED) expect(REOPEN_MS); // refused; else the browser tries again
      });
      expect(SILENCE_MS);
    }
    function expect(within) {
      clearTimeout(silence);
      silence = setTimeout(open, within);
    }
    open();
    return new Promise(() => {}); // until the page goes; then another one leads
  }
  if (navigator.locks) navigator.locks.request(SHARED, lead);
  else lead();
}

// `address()` says what to fetch; `take` gets its text and returns the time that it is of. Returns a function that
// fetches at once.
export function follow(address, take) {
  let request = null;
  let timer = 0;
  let known = null;
  let heardAt = -Infinity;
  let restUntil = 0;
  let again = false;
  indicator.dataset.shownAt = indicator.querySelector(".freshness-text").textContent.replace("Updated ", "");

  async function answer(signal) {
    try {
      const response = await fetch(address(), { cache: "no-store", signal });
      return { response, text: await response.text() };
    } catch {
      return null;
    }
  }

  function show(found) {
    if (!found) return lost("Connection lost: the node does not answer.");
    const { response, text } = found;
    const isText = response.headers.get("content-type")?.startsWith("text/plain");
    if (!response.ok) return lost(isText ? text.trim().slice(0, 200) : `The node is not reached: ${response.status}.`);
    let shownAt;
    try {
      shownAt = take(text);
    } catch (error) {
      console.warn(error);
      return lost("What came is no answer of the node."); // of a proxy, say
    }
    return fresh(shownAt);
  }

  async function refresh() {
    clearTimeout(timer);
    request?.abort();
    const mine = new AbortController();
    request = mine;
    again = false;
    const began = performance.now();
    const limit = setTimeout(() => mine.abort(), LIMIT_MS);
    const found = await answer(mine.signal);
    clearTimeout(limit);
    if (request !== mine) return;
    request = null;
    if (found && (found.response.redirected || found.response.status === 401)) {
      location.reload(); // logged out: the page itself leads to the login
      return;
    }
    show(found);
    const ended = performance.now();
    restUntil = ended + Math.max(REST_MS, 4 * (ended - began)); // a busy node is not asked more than it can answer
    const told = found?.response.ok && ended - heardAt < SILENCE_MS;
    timer = setTimeout(refresh, again ? restUntil - ended : told ? ASK_MS : ASK_ALONE_MS);
  }

  function heard(version) {
    heardAt = version === "" ? -Infinity : performance.now();
    if (version === known) return;
    known = version;
    if (request) {
      again = true; // what is under way may be from before the change
      return;
    }
    clearTimeout(timer);
    timer = setTimeout(refresh, Math.max(0, restUntil - performance.now()));
  }

  listen(heard);
  refresh(); // what changed while the page was on its way
  return refresh;
}

// Like `follow`, for an address that stays.
export function poll(address, take) {
  return follow(() => address, take);
}
