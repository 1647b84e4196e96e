/** `--save-domain`: a guest as a libxc stream to the descriptor that libxl gave. */
import type { Host } from '../host/host.js';
import { JobControl } from '../job.js';
import { runSave } from '../save/save.js';
import { SaveSteering } from '../save/steering.js';
import type { SaveLimits, SaveOptions } from '../save/types.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import { BlockingSink, type BlockingFd } from '../transport/blocking.js';
import type { SaveArguments } from './arguments.js';
import type { Channel } from './channel.js';
import { SaveProgress, type HelperLog } from './log.js';
import { LogLevel } from './protocol.js';

/**
 * For libxl's answer to the suspend callback, ms; a save waits twice as long, and 150 s more. libxl has limits of its own
 * (60 s for the guest to answer, 60 s to suspend, 10 s for each command to QEMU), and its answer must be waited for in any
 * case.
 */
const SUSPEND_TIMEOUT_MS = 240_000;

export interface SaveParts {
  readonly args: SaveArguments;
  readonly host: Host;
  readonly toolstack: Toolstack;
  readonly fd: BlockingFd;
  readonly channel: Channel;
  readonly log: HelperLog;
  readonly limits: SaveLimits;
  /** Aborted by SIGTERM. */
  readonly signal: AbortSignal;
}

/** Saves the guest. Rejects with an error of this library, log-dirty off and the stream spoiled. */
export async function saveForLibxl(parts: SaveParts): Promise<void> {
  const { args, host, toolstack, fd, channel, log, limits, signal } = parts;
  const { domid, live, debug: verify } = args;
  const progress = new SaveProgress(channel, live);
  const control = new JobControl('save', domid, {
    signal,
    onProgress: progress.report,
    progressInterval: 0,
  });
  channel.onLost = (error) => control.cancel(error);
  const options: SaveOptions = {
    domid,
    format: 'libxc',
    live,
    verify,
    afterwards: 'suspended',
    suspendTimeoutMs: SUSPEND_TIMEOUT_MS,
    alwaysAskToSuspend: true,
    toolstack,
  };
  const result = await control.run(async () => {
    if (channel.lost !== undefined) throw channel.lost;
    const steering = new SaveSteering(limits);
    return runSave(control, host, new BlockingSink(fd, { name: `fd ${args.ioFd}` }), options, steering);
  });
  for (const error of result.cleanupErrors) {
    log.xc(LogLevel.WARN, `after the save: ${error instanceof Error ? error.message : String(error)}`);
  }
  const { bytes, pages, iterations, elapsed } = result;
  log.xc(
    LogLevel.INFO,
    `Save successful: ${bytes} bytes, ${pages} pages in ${iterations.length} passes, ${(elapsed / 1000).toFixed(2)} s`,
  );
}
