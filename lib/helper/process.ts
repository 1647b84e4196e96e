/** The process as a helper's world: libxl's pipes as descriptors 0 and 1, the addon for what must block elsewhere. */
import fs from 'node:fs';
import { constants } from 'node:os';
import { debug } from '../debug.js';
import { loadAddon } from '../host/xen/addon.js';
import type { NativeAddon, NativeBlockingFd } from '../host/xen/native.js';
import type { ChannelPort } from './channel.js';
import type { HelperWorld } from './helper.js';

const FROM_LIBXL = 0;
const TO_LIBXL = 1;

/**
 * libxl's pipes. A message is written on the spot: it is short, libxl reads it at once, and what comes after it must
 * not overtake it. A reply may take minutes, so a thread waits for it.
 */
function libxlPort(addon: () => NativeAddon): ChannelPort {
  let replies: NativeBlockingFd | undefined;
  return {
    write(frame) {
      for (let at = 0; at < frame.length;) at += fs.writeSync(TO_LIBXL, frame, at);
    },
    async read(into) {
      try {
        replies ??= new (addon().BlockingFd)(FROM_LIBXL);
      } catch (error) {
        debug('helper: %o', error);
        // Without the addon nothing runs here that would have to go on meanwhile, but libxl must hear of it.
        return readSync(into);
      }
      return replies.read(into);
    },
  };
}

/** Reads until `into` is full or the stream has ended; blocks. Returns the bytes read. */
function readSync(into: Uint8Array): number {
  for (let at = 0; at < into.length;) {
    const n = fs.readSync(FROM_LIBXL, into, at, into.length - at, null);
    if (n === 0) return at;
    at += n;
  }
  return into.length;
}

/** Descriptor 1 carries the protocol: whatever believes to print there prints to descriptor 2 instead. */
function keepStdoutClean(): void {
  Object.defineProperty(process, 'stdout', { get: () => process.stderr, configurable: true });
}

/** The world of this process, but for the hypervisor. `addon` is for tests alone. */
export function worldOfProcess(
  openHost: HelperWorld['openHost'],
  addon: () => NativeAddon = loadAddon,
): HelperWorld {
  keepStdoutClean();
  return {
    argv: process.argv.slice(2),
    env: process.env,
    port: libxlPort(addon),
    openHost,
    openFd: (fd) => new (addon().BlockingFd)(fd),
    onTerminate(handler) {
      if (handler !== undefined) process.on('SIGTERM', handler);
      // libxl's caller may have it blocked, and what a child inherits it keeps.
      addon().unblockSignal(constants.signals.SIGTERM);
    },
    complain(text) {
      fs.writeSync(2, `xen-migrate-save-helper: ${text}\n`);
    },
  };
}
