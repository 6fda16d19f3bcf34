// The same worker as worker.py, line by line.
import { DurableObject } from "cloudflare:workers";

export class Lab extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    ctx.storage.put("constructor", "ran");
  }

  async fetch(request) {
    const storage = this.ctx.storage;
    const what = new URL(request.url).pathname.split("/")[2];
    if (what === "puts") {
      storage.put("a", 1);
      storage.put("a", 2);
      storage.put("b", 1);
      storage.delete("b");
      storage.put({ c: 1, d: 2 });
      return Response.json([...(await storage.list())]);
    }
    if (what === "kept") return Response.json([...(await storage.list())]);
    if (what === "all") {
      storage.put("x", 1);
      storage.deleteAll();
      storage.put("y", 2);
      return Response.json([...(await storage.list())]);
    }
    if (what === "alarm") {
      storage.setAlarm(Date.now() + 100000);
      const set = (await storage.getAlarm()) !== null;
      storage.deleteAlarm();
      return Response.json([set, await storage.getAlarm()]);
    }
    if (what === "many") {
      for (let n = 0; n < 300; n++) storage.put("n", n);
      return Response.json(await storage.get("n"));
    }
    if (what === "transaction") {
      storage.transaction(async (txn) => {
        const n = (await txn.get("t")) ?? 0;
        txn.put("t", n + 1);
      });
      return Response.json((await storage.get("t")) ?? null);
    }
    if (what === "throws") {
      storage.put("before", 1);
      throw new Error("on purpose");
    }
  }

  async alarm() {}
}

function headers() {
  const own = new Headers({ B: "1", a: " 2 ", "X-Empty": "" });
  own.append("b", "3");
  own.append("Set-Cookie", "x=1");
  own.append("set-cookie", "y=2");
  own.set("c", "4");
  own.append("d", "5");
  own.delete("D");
  const seen = [];
  own.forEach((value, name) => seen.push([name, value]));
  return [
    [...own], [...own.keys()], [...own.values()], own.get("B"), own.get("none"), own.has("C"), own.get("set-cookie"),
    own.getSetCookie(), seen, [...new Headers([["q", "1"], ["Q", "2"]])], [...new Headers(own)],
  ];
}

function url(text, base) {
  try {
    const it = new URL(text, base ?? undefined);
    return [it.href, it.origin, it.username, it.password, it.host, it.hostname, it.port, it.pathname, it.search, it.hash,
      [...it.searchParams]];
  } catch (error) {
    return error.name;
  }
}

function params(text) {
  const it = new URLSearchParams(text);
  const had = [it.get("a"), it.getAll("a"), it.has("b")];
  it.append("z", "ü &=+");
  it.sort();
  return [...had, it.toString(), [...it]];
}

function made(text) {
  try {
    return new Request(text).url;
  } catch (error) {
    return error.name;
  }
}

export default {
  async fetch(request, env) {
    const { pathname } = new URL(request.url);
    if (pathname === "/headers") return Response.json([...request.headers].filter(([name]) => name.startsWith("x-")));
    if (pathname === "/own-headers") return Response.json(headers());
    if (pathname === "/urls") return Response.json((await request.json()).map(([text, base]) => url(text, base)));
    if (pathname === "/requests") return Response.json((await request.json()).map(made));
    if (pathname === "/params") return Response.json((await request.json()).map(params));
    if (pathname.startsWith("/lab")) return env.LAB.getByName(pathname.split("/")[3]).fetch(
      "http://lab/x/" + pathname.split("/")[2]);
    return new Response(request.url);
  },
};
