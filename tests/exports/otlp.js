/* A receiver of OTLP/HTTP JSON by OpenTelemetry's own definitions; called by test_otlp.py. Prints its port, then one
   JSON object for each request: what arrived, or why it was refused. A field that the definitions do not know, or
   that is of another type there, does not survive the way through the binary encoding and back. */
"use strict";
const path = require("path");
const http = require("http");
const { isDeepStrictEqual } = require("util");
const root = require(path.join(process.env.UNBLOCK_NPM,
  "node_modules/@opentelemetry/otlp-transformer/build/src/generated/root.js"));
const collector = root.opentelemetry.proto.collector;
const types = {
  "/v1/logs": collector.logs.v1.ExportLogsServiceRequest,
  "/v1/metrics": collector.metrics.v1.ExportMetricsServiceRequest,
};

function understand(url, headers, text) {
  const type = types[url];
  if (!type) throw new Error("no such path: " + url);
  if (headers["content-type"] !== "application/json") throw new Error("not application/json");
  const sent = JSON.parse(text);
  const wrong = type.verify(type.fromObject(sent));
  if (wrong) throw new Error(wrong);
  const read = type.toObject(type.decode(type.encode(type.fromObject(sent)).finish()), { longs: String, enums: Number });
  if (!isDeepStrictEqual(JSON.parse(JSON.stringify(read)), sent)) throw new Error("not understood: " + JSON.stringify(read));
  return read;
}

http.createServer((request, reply) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    let seen;
    try {
      seen = { path: request.url, data: understand(request.url, request.headers, Buffer.concat(parts).toString()) };
    } catch (e) {
      seen = { refused: e.message };
    }
    reply.writeHead(seen.refused ? 400 : 200, { "Content-Type": "application/json" });
    reply.end("{}");
    console.log(JSON.stringify(seen));
  });
}).listen(0, "127.0.0.1", function () { console.log(this.address().port); });
