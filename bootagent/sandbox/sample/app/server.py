"""A small HTTP service: greets, says its version, and says that it is up."""

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VERSION = Path("VERSION").read_text().strip()
SETTINGS = json.loads(Path("config/settings.json").read_text())
ACCESS_LOG = Path("log/access.log")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/up":
            self.reply(200, "up\n")
        elif self.path == "/":
            self.reply(200, f"{SETTINGS['greeting']}, {VERSION}, in {os.environ.get('ENVIRONMENT', 'nowhere')}\n")
        else:
            self.reply(404, "not found\n")

    def reply(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        with ACCESS_LOG.open("a") as log:
            print(self.log_date_time_string(), VERSION, format % args, file=log)


def main():
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    print(f"serving {VERSION} on port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
