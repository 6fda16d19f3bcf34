// The same store as benchmarks/apps/store, in JavaScript on workerd with its storage on local disk.
import { DurableObject } from "cloudflare:workers";

export class Store extends DurableObject {
  async fetch(request) {
    const what = request.url.split("/")[3];
    const storage = this.ctx.storage;
    if (what === "ws") {
      const [client, server] = Object.values(new WebSocketPair());
      this.ctx.acceptWebSocket(server);
      return new Response(null, { status: 101, webSocket: client });
    }
    if (what === "count") return new Response(String(await this.count()));
    if (what === "read") return new Response(String(await storage.get("count")));
    if (what === "fill") {
      for (let start = 0; start < 10000; start += 100) {
        const pairs = {};
        for (let n = start; n < start + 100; n++) pairs["key " + String(n).padStart(6, "0")] = { n };
        await storage.put(pairs);
      }
      return new Response("filled");
    }
    if (what === "list") return new Response(String((await storage.list()).size));
    if (what === "insert") {
      storage.sql.exec("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x TEXT)");
      for (let n = 0; n < 1000; n++) storage.sql.exec("INSERT INTO t (x) VALUES (?)", `row ${n}`);
      return new Response("inserted");
    }
    return new Response("?", { status: 404 });
  }
  async count() {
    const count = ((await this.ctx.storage.get("count")) ?? 0) + 1;
    await this.ctx.storage.put("count", count);
    return count;
  }
  async webSocketMessage(ws, message) {
    await this.count();
    ws.send(message);
  }
}

export default {
  async fetch(request, env) {
    return env.STORES.getByName(request.url.split("/")[4]).fetch(request);
  },
};
