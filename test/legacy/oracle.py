"""Runs Xen's convert-legacy-stream on many images in one process.

argv: path of convert-legacy-stream. Input, again and again: one line "GUEST WIDTH FORMAT QEMU LENGTH" (pv or hvm, 32
or 64, libxc or libxl, 0 to skip the QEMU record), then LENGTH bytes. Output for each: one line of JSON, {"exit": its
exit code, "text": last line of what it complains, "crash": the exception that it did not expect or null, "read": bytes
that it read, "length": bytes that it wrote}, then those bytes.
"""

import importlib.machinery
import importlib.util
import io
import json
import sys
import traceback


def load(path):
    """The script as a module; it does nothing when it is not __main__."""
    loader = importlib.machinery.SourceFileLoader("convert_legacy_stream", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def bounded(script):
    """Numbers that are not there are not counted out first: a damaged count would take all memory."""
    original = script.unpack_ulongs

    def unpack_ulongs(count):
        if count * (script.twidth // 8) > script.fin.getbuffer().nbytes:
            raise IOError("Stream truncated")
        return original(count)

    script.unpack_ulongs = unpack_ulongs


def convert(script, data, guest, width, fmt, qemu):
    """What main() does between its options and its end."""
    said = []
    script.err = said.append
    script.fin = io.BytesIO(data)
    script.fout = io.BytesIO()
    script.twidth = int(width)
    script.pv = guest == "pv"
    script.qemu = qemu == "1"
    script.verbose = False
    crash = None
    try:
        code = script.read_legacy_stream(script.VM(fmt))
    except Exception as error:  # pylint: disable=broad-except
        # Not caught by the script: Python itself ends with 1.
        code = 1
        crash = type(error).__name__
        said.append(traceback.format_exc())
    lines = "\n".join(said).replace("Please fix me", "").strip().split("\n")
    return code, lines[-1], crash, script.fout.getbuffer()


def main():
    sys.dont_write_bytecode = True
    script = load(sys.argv[1])
    bounded(script)
    requests = sys.stdin.buffer
    answers = sys.stdout.buffer
    while True:
        line = requests.readline().decode().split()
        if not line:
            return
        data = requests.read(int(line[4]))
        code, text, crash, output = convert(script, data, *line[:4])
        answer = {"exit": code, "text": text, "crash": crash, "read": script.fin.tell(), "length": len(output)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(output)
        answers.flush()


main()
