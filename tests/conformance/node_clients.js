// One of Node's clients against an echo, as `node node_clients.js NAME URL`: prints a line for each thing that went well.
const [, , name, url] = process.argv;
const WebSocket = require("ws");
const constructors = {
  ws: () => new WebSocket(url),
  "ws without compression": () => new WebSocket(url, { perMessageDeflate: false }),
  partysocket: () => {
    const Reconnecting = require("partysocket/ws").default;
    return new Reconnecting(url, [], { WebSocket, maxRetries: 0 });
  },
};
const socket = constructors[name]();
socket.binaryType = "arraybuffer";
const sent = ["text", new Uint8Array([0, 255, 128]), "x".repeat(1 << 20), "\u{1f600} é \0"];
let step = 0;
const next = () => (step < sent.length ? socket.send(sent[step]) : socket.close(4000, "done"));
socket.addEventListener("open", next);
socket.addEventListener("message", (event) => {
  const want = sent[step++];
  const same = typeof want === "string" ? event.data === want : Buffer.compare(Buffer.from(event.data), Buffer.from(want)) === 0;
  console.log(same ? `echo ${step}` : `wrong ${step}`);
  next();
});
socket.addEventListener("close", (event) => {
  console.log(`close ${event.code} ${event.wasClean}`);
  process.exit(0);
});
socket.addEventListener("error", (event) => console.log(`error ${event.message}`));
