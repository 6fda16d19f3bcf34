// Node `ws`: /echo echoes, /fan sends to everybody by the plain loop. PEER_DEFLATE compresses, PEER_TLS is a folder with
// cert.pem and key.pem.
const http = require("http");
const { WebSocketServer } = require("ws");
const fs = require("fs");
const https = require("https");
const folder = process.env.PEER_TLS;
const hello = (request, response) => response.end("hello");
const server = folder
  ? https.createServer({ cert: fs.readFileSync(`${folder}/cert.pem`), key: fs.readFileSync(`${folder}/key.pem`) }, hello)
  : http.createServer(hello);
const perMessageDeflate = process.env.PEER_DEFLATE ? { serverNoContextTakeover: true, clientNoContextTakeover: true, threshold: 0 } : false;
const wss = new WebSocketServer({ server, perMessageDeflate });
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
