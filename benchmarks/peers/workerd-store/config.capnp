using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = .store),
    (name = "disk", disk = (path = "/nonexistent", writable = true))
  ],
  sockets = [ (name = "http", address = "127.0.0.1:0", http = (), service = "main") ]
);
const store :Workerd.Worker = (
  modules = [ (name = "worker.js", esModule = embed "worker.js") ],
  compatibilityDate = "2026-07-01",
  durableObjectNamespaces = [ (className = "Store", uniqueKey = "bench-store", enableSql = true) ],
  durableObjectStorage = (localDisk = "disk"),
  bindings = [ (name = "STORES", durableObjectNamespace = "Store") ]
);
