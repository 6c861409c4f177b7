"use strict";

const at = (id) => document.getElementById(id);
const buttons = [at("rewrite"), at("compare")];

function headers(more) {
  const found = { "content-type": "application/json", ...more };
  if (at("key").value) found.authorization = "Bearer " + at("key").value;
  return found;
}

async function call(path, body, more) {
  const options = body === null
    ? { headers: headers(more) }
    : { method: "POST", headers: headers(more), body: JSON.stringify(body) };
  const reply = await fetch(path, options);
  const text = await reply.text();
  let values;
  try {
    values = JSON.parse(text);
  } catch {
    values = null;
  }
  if (!reply.ok) {
    const said = values && values.error && values.error.message;
    throw new Error(reply.status + ": " + (said || text.slice(0, 300) || "no answer"));
  }
  if (values === null) throw new Error("the answer is no JSON");
  return values;
}

async function answer(text) {
  const body = { messages: [{ role: "user", content: text }], max_tokens: Number(at("tokens").value) || 64 };
  if (at("model").value) body.model = at("model").value;
  // What is compared was rewritten here already, so neither side is rewritten on its way.
  const found = await call("v1/chat/completions", body, { "x-rlprompt-rewrite": "0" });
  return found.choices[0].message.content || "";
}

function fail(problem) {
  at("error").textContent = problem.message;
  at("error").hidden = false;
}

async function run(compares) {
  const text = at("text").value;
  if (!text.trim()) {
    at("text").reportValidity();
    return;
  }
  for (const button of buttons) button.disabled = true;
  at("error").hidden = true;
  for (const id of ["rewritten", "original-answer", "rewritten-answer", "verdict"]) at(id).textContent = "";
  at("original").textContent = text;
  at("state").textContent = "rewriting …";
  try {
    const body = { text };
    if (at("model").value) body.model = at("model").value;
    const found = await call("rewrite", body);
    at("rewritten").textContent = found.text;
    const why = found.reason ? found.reason.split(":")[0] : "";
    const verdicts = { 1: found.seconds + " s", 0: "left alone: " + why, fallback: "fallback: " + why };
    at("verdict").textContent = "(" + verdicts[found.rewritten] + ")";
    if (compares) {
      at("state").textContent = "asking the LLM twice …";
      const answers = await Promise.allSettled([answer(text), answer(found.text)]);
      ["original-answer", "rewritten-answer"].forEach((id, place) => {
        if (answers[place].status === "fulfilled") at(id).textContent = answers[place].value;
        else fail(answers[place].reason);
      });
    }
  } catch (problem) {
    fail(problem);
  }
  at("state").textContent = "";
  for (const button of buttons) button.disabled = false;
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run(false);
});
at("compare").addEventListener("click", () => run(true));

async function models() {
  try {
    const found = await call("v1/models", null);
    for (const model of found.data || []) {
      const option = document.createElement("option");
      option.value = model.id;
      at("models").append(option);
    }
  } catch {
    // Not every server lists its models.
  }
}
models();
