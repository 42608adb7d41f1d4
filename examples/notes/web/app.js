"use strict";

const form = document.getElementById("form");
const text = document.getElementById("text");
const add = document.getElementById("add");
const list = document.getElementById("notes");
const none = document.getElementById("none");
const statusLine = document.getElementById("status");

function say(message, bad = false) {
  statusLine.textContent = message;
  statusLine.classList.toggle("bad", bad);
}

// Asks the server; an answer that is no success becomes an error with the server's words.
async function ask(method, path, body) {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server cannot be reached. Try again in a moment.");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error ? `Not done: ${answer.error}.` : `The server answered ${response.status}.`);
  }
  return response.status === 204 ? null : response.json();
}

function item(note) {
  const li = document.createElement("li");
  const words = document.createElement("p");
  words.textContent = note.text;
  const time = document.createElement("time");
  const date = new Date(note.created);
  time.dateTime = date.toISOString();
  time.textContent = date.toLocaleString();
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Delete";
  const start = note.text.length > 40 ? `${note.text.slice(0, 40)}…` : note.text;
  button.setAttribute("aria-label", `Delete note: ${start}`);
  button.addEventListener("click", () => remove(note, button));
  const row = document.createElement("div");
  row.className = "row";
  row.append(time, button);
  li.append(words, row);
  return li;
}

async function load() {
  const notes = await ask("GET", "/api/notes");
  // Newest first: what was just written is at the top.
  list.replaceChildren(...notes.reverse().map(item));
  none.hidden = notes.length > 0;
}

async function remove(note, button) {
  button.disabled = true;
  try {
    await ask("DELETE", `/api/notes/${note.id}`);
    await load();
    say("Note deleted.");
    // The button that had the focus is gone.
    text.focus();
  } catch (error) {
    button.disabled = false;
    say(error.message, true);
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  add.disabled = true;
  try {
    await ask("POST", "/api/notes", { text: text.value });
    text.value = "";
    await load();
    say("Note added.");
  } catch (error) {
    say(error.message, true);
  }
  add.disabled = false;
  text.focus();
});

text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit();
  }
});

load().catch((error) => say(error.message, true));
