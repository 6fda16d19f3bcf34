// Node `ws`: /echo echoes, /fan sends to everybody by the plain loop.
const http = require("http");
const { WebSocketServer } = require("ws");
const server = http.createServer((request, response) => response.end("hello"));
const wss = new WebSocketServer({ server, perMessageDeflate: false });
const all = new Set();
wss.on("connection", (ws, request) => {
  const fan = request.url.startsWith("/fan");
  if (fan) all.add(ws);
  ws.on("close", () => all.delete(ws));
  ws.on("message", (data, binary) => {
    if (fan) for (const other of all) other.send(data, { binary });
    else ws.send(data, { binary });
  });
});
server.listen(Number(process.argv[2]), "127.0.0.1", 4096, () => console.log("ready"));
