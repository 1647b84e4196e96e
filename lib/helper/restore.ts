/** `--restore-domain`: the libxc stream from the descriptor that libxl gave, into the domain that libxl made. */
import type { Host } from '../host/host.js';
import { JobControl } from '../job.js';
import { runRestore } from '../restore/restore.js';
import { BlockingSource, type BlockingFd } from '../transport/blocking.js';
import type { RestoreArguments } from './arguments.js';
import type { Channel } from './channel.js';
import type { HelperLog } from './log.js';
import { LogLevel } from './protocol.js';
import type { LibxlToolstack, RestoreResults } from './toolstack.js';

export interface RestoreParts {
  readonly args: RestoreArguments;
  readonly host: Host;
  readonly toolstack: LibxlToolstack;
  readonly fd: BlockingFd;
  readonly channel: Channel;
  readonly log: HelperLog;
}

/** Restores the guest, and leaves it paused. Not a byte is read behind the stream's END: libxl goes on there. */
export async function restoreForLibxl(parts: RestoreParts): Promise<RestoreResults> {
  const { args, host, toolstack, fd, channel, log } = parts;
  const { domid, wiring } = args;
  const control = new JobControl('restore', domid, {});
  channel.onLost = (error) => control.cancel(error);
  // Nothing else goes on here meanwhile, and SIGTERM ends the process by itself.
  const source = new BlockingSource(fd, { name: `fd ${args.ioFd}`, shortReadsBlock: true });
  const options = { domid, format: 'libxc', run: false, toolstack, wiring } as const;
  const result = await control.run(() => runRestore(control, host, source, options));
  const { bytes, pages, populated, verifyMismatches, elapsed } = result;
  if (verifyMismatches.count > 0) {
    const listed = verifyMismatches.pfns.map((pfn) => `0x${pfn.toString(16)}`).join(' ');
    log.xc(LogLevel.ERROR, `verify: ${verifyMismatches.count} pages differ, the first are ${listed}`);
  }
  log.xc(
    LogLevel.INFO,
    `Restore successful: ${bytes} bytes, ${pages} pages (${populated.pages} populated, ` +
      `${populated.superpages} superpages), ${(elapsed / 1000).toFixed(2)} s`,
  );
  return { storeGfn: result.storeGfn, consoleGfn: result.consoleGfn };
}
