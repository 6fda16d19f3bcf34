// The same room as benchmarks/apps/room, in JavaScript on workerd: one hibernating object a path.
import { DurableObject } from "cloudflare:workers";

export class Room extends DurableObject {
  async fetch(request) {
    const [client, server] = Object.values(new WebSocketPair());
    this.fan = request.url.includes("/fan/");
    this.ctx.acceptWebSocket(server, [this.fan ? "fan" : "echo"]);
    server.serializeAttachment("x".repeat(56));
    return new Response(null, { status: 101, webSocket: client });
  }
  constructor(ctx, env) {
    super(ctx, env);
    this.fan = ctx.getWebSockets("fan").length > 0;
  }
  async webSocketMessage(ws, message) {
    if (this.fan) {
      for (const socket of this.ctx.getWebSockets()) socket.send(message);
    } else {
      ws.send(message);
    }
  }
}

export default {
  async fetch(request, env) {
    if (request.headers.get("Upgrade") !== "websocket") return new Response("hello");
    const path = request.url.split("/").slice(3).join("/");
    return env.ROOMS.getByName(path).fetch(request);
  },
};
