// The same worker as worker.py, line by line.
import { DurableObject } from "cloudflare:workers";

export class Lab extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    this.log = [];
  }

  async fetch(request) {
    const url = new URL(request.url);
    if (url.pathname.endsWith("/log")) return Response.json(this.log);
    const [client, server] = Object.values(new WebSocketPair());
    if (url.pathname.includes("/plain")) {
      server.accept();
      server.binaryType = "arraybuffer";
      server.addEventListener("message", (event) => this.message(server, event.data));
      server.addEventListener("close", (event) => this.log.push(["close", event.code, event.reason, event.wasClean,
        event.wasClean || url.pathname.includes("readyState") ? server.readyState : "cut"]));
      server.addEventListener("error", () => this.log.push(["error"]));
    } else {
      this.ctx.acceptWebSocket(server, ["tag", ...url.searchParams.getAll("tag")]);
      server.serializeAttachment({ path: url.pathname });
    }
    const headers = {};
    if (url.searchParams.has("protocol")) headers["Sec-WebSocket-Protocol"] = url.searchParams.get("protocol");
    return new Response(null, { status: 101, webSocket: client, headers });
  }

  message(ws, message) {
    this.log.push(["message", typeof message === "string" ? message.slice(0, 50) : message.byteLength]);
    if (typeof message !== "string") return ws.send(message);
    const [verb, ...rest] = message.split(" ");
    if (verb === "close") return ws.close(...(rest.length ? [Number(rest[0]), rest.slice(1).join(" ")] : []));
    if (verb === "throw") throw new Error("on purpose");
    if (verb === "after") {
      ws.close(4000, "x");
      try {
        ws.send("never");
        this.log.push("sent");
      } catch (error) {
        this.log.push([error.name, error.message.slice(0, 42)]);
      }
      return;
    }
    if (verb === "codes") {
      const found = [];
      for (const code of [999, 1004, 1005, 1006, 1015, 5000]) {
        try {
          ws.close(code);
          found.push("allowed");
        } catch (error) {
          found.push(error.name);
        }
      }
      try {
        ws.close(1000, "x".repeat(124));
      } catch (error) {
        found.push(error.name);
      }
      return ws.send(JSON.stringify(found));
    }
    if (verb === "state") {
      const sockets = this.ctx.getWebSockets();
      return ws.send(JSON.stringify([ws.readyState, sockets.length, this.ctx.getWebSockets("tag").length,
        this.ctx.getTags(ws), ws.deserializeAttachment()]));
    }
    if (verb === "auto") {
      this.ctx.setWebSocketAutoResponse(new WebSocketRequestResponsePair("ping", "pong"));
      return ws.send("set");
    }
    ws.send(message);
  }

  webSocketMessage(ws, message) {
    this.message(ws, message);
  }

  webSocketClose(ws, code, reason, wasClean) {
    this.log.push(["close", code, reason, wasClean, this.ctx.getWebSockets().length]);
    if (reason === "answer me") ws.close(4321, "answered");
  }

  webSocketError(ws, error) {
    this.log.push(["error"]);
  }
}

export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    const upgrade = request.headers.get("Upgrade");
    if (!url.pathname.endsWith("/log") && upgrade !== "websocket")
      return new Response("Expected WebSocket upgrade", { status: 426 });
    return env.LAB.getByName(url.pathname.split("/")[1]).fetch(request);
  },
};
