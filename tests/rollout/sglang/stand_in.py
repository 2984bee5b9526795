"""A program that listens like an SGLang server and computes nothing: ``python stand_in.py --port P``.

It answers /health, /model_info, /server_info, /v1/loads and /generate (with its own port), to whoever sends
the key. Only the standard library is imported, so that it starts in a moment.
"""

import argparse
import http.server
import json
import os
import signal
import subprocess
import sys
import time

OPTIONS = argparse.ArgumentParser()
OPTIONS.add_argument("--host", default="127.0.0.1")
OPTIONS.add_argument("--port", type=int, required=True)
OPTIONS.add_argument("--key", default="")
OPTIONS.add_argument("--lines", type=int, default=0, help="print so many lines first")
OPTIONS.add_argument("--fail", type=int, default=None, help="exit with this code instead of listening")
OPTIONS.add_argument("--mute", action="store_true", help="never become ready")
OPTIONS.add_argument("--child", action="store_true", help="start a child that ignores SIGTERM")
OPTIONS.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")

CHILD = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("child", flush=True)
time.sleep(600)
"""
INFO = {
    "model_path": "none",
    "served_model_name": "none",
    "tokenizer_path": "none",
    "is_generation": True,
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/health"):
            self._answer(503 if self.server.mute else 200, {})
        elif not self._allowed():
            self._answer(401, {"error": "Unauthorized"})
        elif self.path == "/server_info":
            self._answer(200, {**INFO, "pid": os.getpid()})
        elif self.path.startswith("/v1/loads"):
            self._answer(200, {"timestamp": time.time(), "loads": []})
        else:
            self._answer(200, INFO)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        if not self._allowed():
            self._answer(401, {"error": "Unauthorized"})
        else:
            self._answer(200, {"port": self.server.server_port, "path": self.path, "body": body})

    def _allowed(self) -> bool:
        return not self.server.key or self.headers.get("Authorization") == f"Bearer {self.server.key}"

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    options = OPTIONS.parse_args()
    for line in range(options.lines):
        print(f"line {line} api_key={options.key!r}", flush=True)
    if options.fail is not None:
        sys.exit(options.fail)
    if options.child:
        subprocess.Popen([sys.executable, "-c", CHILD])
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = http.server.ThreadingHTTPServer((options.host, options.port), Handler)
    server.key, server.mute = options.key, options.mute
    print("listening", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
