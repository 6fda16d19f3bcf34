"use strict";
const room = new URLSearchParams(location.search).get("room") || "lobby";
const $ = (id) => document.getElementById(id);
const players = new Map();
let me = null;
let socket = null;
let retry = 500;

$("room").textContent = room;

function show() {
  $("count").textContent = players.size;
  const rows = [...players].sort((a, b) => b[1] - a[1]).map(([id, score]) => {
    const row = document.createElement("li");
    row.className = id === me ? "me" : "";
    const name = document.createElement("span");
    name.textContent = id === me ? "you" : `player ${id.slice(0, 6)}`;
    const points = document.createElement("span");
    points.textContent = score;
    row.append(name, points);
    return row;
  });
  $("players").replaceChildren(...rows);
  $("score").textContent = players.get(me) ?? 0;
}

function status(text, open) {
  $("status").textContent = text;
  $("status").className = open ? "open" : "closed";
  for (const button of document.querySelectorAll("button")) button.disabled = !open;
}

const handlers = {
  connected(message) {
    me = message.playerId;
    players.clear();
    for (const player of message.players) players.set(player.id, player.score);
  },
  joined(message) { players.set(message.id, message.score); },
  left(message) { players.delete(message.playerId); },
  moved(message) { players.set(me, message.score); },
  score_update(message) { players.set(message.playerId, message.score); },
};

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/room/${encodeURIComponent(room)}`);
  socket.onopen = () => { retry = 500; status("connected", true); };
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    handlers[message.type]?.(message);
    show();
  };
  socket.onclose = () => {
    status("disconnected, trying again…", false);
    setTimeout(connect, retry + Math.random() * 250);
    retry = Math.min(retry * 2, 10000);
  };
}

for (const button of document.querySelectorAll("button")) {
  button.addEventListener("click", () => socket.send(JSON.stringify({ type: "move", points: Number(button.dataset.points) })));
}
status("connecting…", false);
connect();
