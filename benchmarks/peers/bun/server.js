// Bun (uWebSockets): /echo echoes, /fan publishes to everybody. PEER_DEFLATE compresses (each on its own, as the others do),
// PEER_TLS is a folder with cert.pem and key.pem.
const folder = process.env.PEER_TLS;
const deflate = !!process.env.PEER_DEFLATE;
const server = Bun.serve({
  hostname: "127.0.0.1",
  tls: folder ? { cert: Bun.file(`${folder}/cert.pem`), key: Bun.file(`${folder}/key.pem`) } : undefined,
  port: Number(process.argv[2]),
  fetch(request, server) {
    const fan = new URL(request.url).pathname.startsWith("/fan");
    if (server.upgrade(request, { data: { fan } })) return;
    return new Response("hello");
  },
  websocket: {
    perMessageDeflate: deflate,
    open(ws) { if (ws.data.fan) ws.subscribe("fan"); },
    message(ws, message) { if (ws.data.fan) server.publish("fan", message, deflate); else ws.send(message, deflate); },
  },
});
console.log("ready");
