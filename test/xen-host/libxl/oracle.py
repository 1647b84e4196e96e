"""Xen as its own Python bindings see it: what scenarios do to guests and ask about them without the library under test.

Reads requests, a JSON array [function, argument...] a line, and answers each with a line: {"ok": value} or
{"error": [errno, text]}.
"""
import errno
import json
import sys
import time

sys.path.insert(0, '/usr/lib/xen-4.17/lib/python')

import xen.lowlevel.xc  # noqa: E402
import xen.lowlevel.xs  # noqa: E402

xc = xen.lowlevel.xc.xc()
xs = xen.lowlevel.xs.xs()
LIMIT = 90


def info(domid):
    try:
        found = xc.domain_getinfo(domid, 1)
    except xen.lowlevel.xc.Error as error:
        # No domain with this number or a higher one.
        if error.args[0] == errno.ESRCH:
            return None
        raise
    return next((domain for domain in found if domain['domid'] == domid), None)


def wait(domid, want, seconds=LIMIT):
    """Until the domain is 'shutdown', 'running' (not shut down) or 'gone'."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = info(domid)
        state = 'gone' if now is None else 'shutdown' if now['shutdown'] else 'running'
        if state == want:
            return now
        time.sleep(0.02)
    raise OSError(110, 'domain %d is not %s: %r' % (domid, want, info(domid)))


def suspend(domid):
    """Asks through xenstore, as libxl does a guest without a suspend event channel."""
    path = '/local/domain/%d/control/shutdown' % domid
    xs.write('', path, 'suspend')
    return wait(domid, 'shutdown')


def resume(domid, fast=1):
    xc.domain_resume(domid, fast)
    # As xs_resume_domain: xenstored tells of the next shutdown again.
    xs.resume_domain(domid)
    return info(domid)


def dump(domid):
    """What Xen prints of the domain for the debug key q."""
    xc.send_debug_keys('q')
    text = xc.readconsolering().decode('latin1')
    head = 'General information for domain %d:' % domid
    at = text.rfind(head)
    if at < 0:
        return None
    end = text.find('General information for domain', at + 1)
    return text[at:end if end > 0 else len(text)]


calls = {
    'info': info,
    'list': lambda: xc.domain_getinfo(0, 100),
    'wait': wait,
    'suspend': suspend,
    'resume': resume,
    'pause': xc.domain_pause,
    'unpause': xc.domain_unpause,
    'shutdown': lambda domid, reason: xc.domain_shutdown(domid, reason),
    'dump': dump,
    'ring': lambda: xc.readconsolering().decode('latin1'),
    'read': lambda path: (xs.read('', path) or b'').decode('latin1'),
    'write': lambda path, value: xs.write('', path, value),
}

for line in sys.stdin:
    name, *arguments = json.loads(line)
    try:
        answer = {'ok': calls[name](*arguments)}
    except Exception as error:  # noqa: BLE001: whatever it was, whoever asked is told
        number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        answer = {'error': [number, '%s(%s): %r' % (name, arguments, error)]}
    print(json.dumps(answer), flush=True)
