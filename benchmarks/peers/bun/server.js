// Bun (uWebSockets): /echo echoes, /fan publishes to everybody.
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  fetch(request, server) {
    const fan = new URL(request.url).pathname.startsWith("/fan");
    if (server.upgrade(request, { data: { fan } })) return;
    return new Response("hello");
  },
  websocket: {
    open(ws) { if (ws.data.fan) ws.subscribe("fan"); },
    message(ws, message) { if (ws.data.fan) server.publish("fan", message); else ws.send(message); },
  },
});
console.log("ready");
