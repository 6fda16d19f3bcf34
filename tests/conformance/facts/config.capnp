using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [ (name = "main", worker = .lab) ],
  sockets = [ (name = "http", address = "127.0.0.1:0", http = (), service = "main") ]
);
const lab :Workerd.Worker = (
  modules = [ (name = "worker.js", esModule = embed "worker.js") ],
  compatibilityDate = "2026-07-01",
  durableObjectNamespaces = [ (className = "Lab", uniqueKey = "side-by-side") ],
  durableObjectStorage = (inMemory = void),
  bindings = [ (name = "LAB", durableObjectNamespace = "Lab") ]
);
