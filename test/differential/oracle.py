"""Runs Xen's verify-stream-v2 on many streams in one process.

argv: path of verify-stream-v2. Input, again and again: one line "FORMAT LENGTH", then LENGTH bytes. Output for each:
one line of JSON, {"exit": its exit code, "text": last line of what it complains}.
"""

import importlib.machinery
import importlib.util
import io
import json
import sys


def load(path):
    """The script as a module; it does nothing when it is not __main__."""
    loader = importlib.machinery.SourceFileLoader("verify_stream_v2", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def main():
    sys.dont_write_bytecode = True
    script = load(sys.argv[1])
    # Its reader asks for any length it is told; a file would return what is there.
    said = []
    script.err = said.append
    requests = sys.stdin.buffer
    while True:
        line = requests.readline().split()
        if not line:
            return
        data = requests.read(int(line[1]))
        said.clear()
        script.fin = io.BytesIO(data)
        code = script.read_stream(line[0].decode())
        lines = "\n".join(said).replace("Please fix me", "").strip().split("\n")
        print(json.dumps({"exit": code, "text": lines[-1]}), flush=True)


main()
