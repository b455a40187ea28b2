// The example service: answers / and /version with its version, /health with its health.
const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");

const version = fs.readFileSync(path.join(__dirname, "VERSION"), "utf8").trim();
// A release that was built broken says so here.
const healthy = !fs.existsSync(path.join(__dirname, "BROKEN"));

const server = http.createServer((request, response) => {
  const pages = { "/": version, "/version": version, "/pid": String(process.pid) };
  if (request.url === "/health") {
    response.writeHead(healthy ? 200 : 500).end(healthy ? version : "broken");
  } else if (request.url in pages) {
    response.writeHead(200).end(pages[request.url]);
  } else {
    response.writeHead(404).end();
  }
});
server.listen(Number(process.env.PORT), process.env.HOST);
// In order: no new connections, those there are answered.
process.on("SIGTERM", () => server.close(() => process.exit(0)));
