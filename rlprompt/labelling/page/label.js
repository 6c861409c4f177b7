"use strict";

// Texts come from models and may hold anything: they are set as text, never as markup.
const KEYS = {
  ArrowLeft: "left", 1: "left", a: "left",
  ArrowRight: "right", 2: "right", d: "right",
  0: "tie", "=": "tie", " ": "tie",
  s: "skip",
  u: "undo", Backspace: "undo",
};
const SAID = { left: "Left is better", right: "Right is better", tie: "Equally good", skip: "Skipped", undo: "Undone" };
const QUESTION = { outputs: "Which answer is better?", prompts: "Which prompt is better?" };
// A key that bounces must not judge what nobody has read yet.
const SETTLE_MS = 200;

const byId = (id) => document.getElementById(id);
let state = null;
let busy = true;
let shownAt = 0;

function put(id, text) {
  const box = byId(id);
  box.textContent = text;
  box.classList.toggle("empty", text === "");
  box.scrollTop = 0;
}

function show(next) {
  const before = state && state.comparison ? state.comparison.id : null;
  state = next;
  const asked = state.comparison;
  byId("where").textContent = `${state.run} · ${state.annotator}`;
  byId("count").textContent = `${state.judged} of ${state.total} judged`;
  byId("progress").max = state.total;
  byId("progress").value = state.judged;
  byId("question").textContent = asked ? QUESTION[asked.what] : "Done";
  byId("sides").hidden = !asked;
  byId("done").hidden = Boolean(asked);
  byId("input-box").hidden = !asked || asked.input === "";
  byId("votes-file").textContent = state.votes_file;
  byId("command").textContent = state.command;
  if (asked) {
    put("input", asked.input);
    put("left", asked.left);
    put("right", asked.right);
  }
  for (const button of document.querySelectorAll("[data-choice]")) button.disabled = !asked;
  byId("undo").disabled = state.last === null;
  if (!asked || asked.id !== before) shownAt = performance.now();
  byId("main").dataset.state = asked ? "asking" : "done";
  byId("main").dataset.comparison = asked ? asked.id : "";
}

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  const answer = await fetch(path, { ...options, cache: "no-store" });
  if (answer.status === 404) throw new Error("gone");
  return answer.json();
}

async function act(path, body, said) {
  if (busy) return;
  busy = true;
  try {
    const next = await call(path, body);
    if (next.comparison === undefined) throw new Error("refused");
    show(next);
    byId("trouble").textContent = next.error ? `Not recorded: ${next.error}.` : "";
    if (!next.error && said) byId("status").textContent = `${said}. ${next.judged} of ${next.total} judged.`;
  } catch {
    byId("trouble").textContent =
      "The server does not answer, so this was perhaps not recorded. Start rlprompt label again and open the new " +
      "address: it goes on where the votes end.";
  } finally {
    busy = false;
  }
}

function choose(choice) {
  if (!state) return;
  if (choice === "undo") {
    if (state.last !== null) act("undo", { vote: state.last }, SAID.undo);
    return;
  }
  if (!state.comparison || performance.now() - shownAt < SETTLE_MS) return;
  act("vote", { comparison: state.comparison.id, choice }, SAID[choice]);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  const choice = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!choice || (event.key === " " && event.target.closest("button, a"))) return;
  event.preventDefault();
  if (!event.repeat) choose(choice);
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) choose(button.dataset.choice || "undo");
});

busy = false;
act("state");
