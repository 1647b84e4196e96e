/**
 * The save helper from its arguments to its exit code, without the process around it: pipes, descriptors, hypervisor and
 * SIGTERM are handed in. main.ts joins it with the process.
 */
import { CancelledError, UsageError, XenMigrationError } from '../errors.js';
import type { Host } from '../host/host.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import type { BlockingFd } from '../transport/blocking.js';
import { parseHelperArguments, StreamType, type HelperArguments } from './arguments.js';
import { Channel, type ChannelPort } from './channel.js';
import { errnoOf } from './errno.js';
import { HelperLog } from './log.js';
import { encodeComplete, encodeRestoreResults, LogLevel } from './protocol.js';
import { LibxlToolstack, type RestoreResults } from './toolstack.js';
import { tunablesFrom } from './tunables.js';

/** What surrounds a helper. */
export interface HelperWorld {
  /** Without node and script. */
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly port: ChannelPort;
  /** The hypervisor, with libxl as its toolstack. `log` takes libxenctrl's lines. */
  openHost(toolstack: Toolstack, log: (level: number, text: string) => void): Promise<Host>;
  openFd(fd: number): BlockingFd | Promise<BlockingFd>;
  /** Lets SIGTERM through, whatever its mask was; from now on it calls `handler`, or ends the process without one. */
  onTerminate(handler: (() => void) | undefined): void;
  /** A line for whoever started this by hand: where there is no libxl to tell. */
  complain(text: string): void;
}

/** Exit codes. libxl reports any but 0 as a broken helper. */
export const HelperExit = { DONE: 0, LOST: 1, USAGE: 2 } as const;

/** Results that libxl gets of a restore that failed. */
const NO_RESULTS: RestoreResults = { storeGfn: 0, consoleGfn: 0 };

/** Does what libxl asks for. Resolves to the exit code; never rejects. */
export async function runHelper(world: HelperWorld): Promise<number> {
  let args: HelperArguments;
  try {
    args = parseHelperArguments(world.argv);
  } catch (error) {
    world.complain(textOf(error));
    return HelperExit.USAGE;
  }
  const channel = new Channel(world.port);
  const log = new HelperLog(channel);
  log.own(LogLevel.DEBUG, `starting ${args.mode}`);
  let results = NO_RESULTS;
  let errno = 0;
  try {
    results = (await serve(world, args, channel, log)) ?? NO_RESULTS;
  } catch (error) {
    errno = errnoOf(error);
    log.xc(LogLevel.ERROR, `${args.mode === 'save' ? 'Save' : 'Restore'} failed`);
    log.failure(error, errno);
  }
  if (args.mode === 'restore') channel.send(encodeRestoreResults(results.storeGfn, results.consoleGfn));
  const retval = errno === 0 ? 0 : -1;
  log.own(LogLevel.DEBUG, `complete r=${retval}`, errno);
  try {
    await channel.request(encodeComplete(retval, errno));
  } catch (error) {
    world.complain(textOf(error));
    return HelperExit.LOST;
  }
  return HelperExit.DONE;
}

/** The work between the first log line and the last. Resolves to the results of a restore. */
async function serve(
  world: HelperWorld,
  args: HelperArguments,
  channel: Channel,
  log: HelperLog,
): Promise<RestoreResults | undefined> {
  if (args.streamType !== StreamType.PLAIN) throw checkpointed(args);
  const toolstack = new LibxlToolstack(channel, args);
  const openHost = (): Promise<Host> => world.openHost(toolstack, (level, text) => log.library(level, text));
  if (args.mode === 'restore') {
    world.onTerminate(undefined);
    const [{ restoreForLibxl }, host] = await Promise.all([import('./restore.js'), openHost()]);
    return closing(host, async () =>
      restoreForLibxl({ args, host, toolstack, fd: await world.openFd(args.ioFd), channel, log }),
    );
  }

  const limits = tunablesFrom(world.env);
  const stop = new AbortController();
  world.onTerminate(() => stop.abort(new CancelledError('aborted by libxl (SIGTERM)')));
  const [{ saveForLibxl }, host] = await Promise.all([import('./save.js'), openHost()]);
  await closing(host, async () => {
    const fd = await world.openFd(args.ioFd);
    await saveForLibxl({ args, host, toolstack, fd, channel, log, limits, signal: stop.signal });
  });
  return undefined;
}

/** The process is about to end: what cannot be closed is of no interest, and neither is waiting for it. */
async function closing<T>(host: Host, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } finally {
    await host.close().catch(() => undefined);
  }
}

/** Remus and COLO need callbacks between the checkpoints that this helper does not make yet. */
function checkpointed({ mode, streamType }: HelperArguments): XenMigrationError {
  const kind = streamType === StreamType.REMUS ? 'Remus' : 'COLO';
  const cause = Object.assign(new Error('not supported'), { code: 'EOPNOTSUPP' });
  return new UsageError(
    `${kind} (stream type ${streamType}): this helper ${mode}s plain streams only; unset LIBXL_SAVE_HELPER for checkpoints`,
    { cause },
  );
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
