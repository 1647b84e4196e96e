"""A character device for tests: opens a pseudo-terminal, prints its path, and carries its bytes to and from stdio."""

import os
import select
import sys
import tty

master, slave = os.openpty()
tty.setraw(slave)
sys.stdout.write(os.ttyname(slave) + "\n")
sys.stdout.flush()

while True:
    ready, _, _ = select.select([0, master], [], [])
    for source, sink in ((0, master), (master, 1)):
        if source not in ready:
            continue
        data = os.read(source, 4096)
        if not data:
            sys.exit(0)
        while data:
            data = data[os.write(sink, data):]
