// Asks the node again and again, and says plainly when what is shown is out of date.

const INTERVAL_MS = 3000;
const LIMIT_MS = 8000;

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

// `take` gets the response's text and returns the time that it is of.
export function poll(address, take) {
  indicator.dataset.shownAt = indicator.querySelector(".freshness-text").textContent.replace("Updated ", "");
  async function ask() {
    try {
      const response = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(LIMIT_MS) });
      const text = await response.text();
      if (response.ok) {
        fresh(take(text));
      } else {
        lost(text.trim().slice(0, 200));
      }
    } catch (error) {
      lost("Connection lost: the node does not answer.");
    }
    setTimeout(ask, INTERVAL_MS);
  }
  setTimeout(ask, INTERVAL_MS);
}
