/** Live migration of a whole guest over a connection, at both of its ends. */
import type { Duplex } from 'node:stream';
import { UsageError, XenMigrationError, type GuestWhereabouts } from '../errors.js';
import type { Host } from '../host/host.js';
import { JobControl } from '../job.js';
import { runRestore } from '../restore/restore.js';
import { runSave } from '../save/save.js';
import { SaveSteering } from '../save/steering.js';
import { transportFailure } from '../transport/failure.js';
import { isNoteId } from '../toolstack/notes.js';
import type { Toolstack } from '../toolstack/toolstack.js';
import { checkBudget, withinBudget } from '../save/throttle.js';
import { openWithin, type Reconnect } from './opening.js';
import { fullTimeouts } from './limits.js';
import { runReceive } from './receiver.js';
import { runMigrate } from './sender.js';
import type {
  MigrateJob,
  MigrateOptions,
  MigrateResult,
  ReceiveJob,
  ReceiveOptions,
  ReceiveResult,
} from './types.js';
import { whereaboutsOf } from './whereabouts.js';
import { checkPeer } from './wire.js';
import { xlSide } from './xl/side.js';

/**
 * Migrates a guest to a receiver of this library at the other end of `peer`.
 *
 * The guest goes on running here until its memory is nearly all there, stands still for the rest, and runs there.
 * Whatever fails before the receiver is told to run it, it goes on here; `error.guest` says where it is after every
 * failure. See docs/reference/handshake.md.
 *
 * @throws UsageError for options that cannot be; everything else rejects `result`: PeerError, TimeoutError,
 *   CancelledError, HypercallError, GuestError, TransportError
 */
export function startMigrate(host: Host, options: MigrateOptions): MigrateJob {
  const { peer } = options;
  if (typeof peer !== 'function') checkPeer(peer, 'peer');
  if (!Number.isInteger(options.domid) || options.domid < 0)
    throw new UsageError(`no domid: ${options.domid}`);
  if (options.id !== undefined && !isNoteId(options.id)) {
    throw new UsageError('id must be a UUID in lower case');
  }
  fullTimeouts('sender', options.timeouts);
  checkBudget(options.budget);
  const steering = new SaveSteering(options);
  const control = new JobControl('migrate', options.domid, options);
  const result = settled(
    typeof peer === 'function' ? undefined : peer,
    control.run(() =>
      withinBudget(options.budget, control, async (throttle) => {
        steering.throttle = throttle;
        if (typeof peer !== 'function') {
          return runMigrate(control, host, { ...options, peer }, steering, runSave);
        }
        const { reconnect = peer } = options;
        const connection = await connectFirst(control, peer, options);
        return runMigrate(control, host, { ...options, peer: connection, reconnect }, steering, runSave);
      }),
    ),
    () => whereaboutsOf(host, options.domid),
  );
  return {
    result,
    get status() {
      return control.status;
    },
    update: (changes) => steering.update(changes),
    switchover: () => steering.switchover(),
    cancel: (reason) => control.cancel(reason),
  };
}

/** The connection of a caller who gave a way to one. It is the job's from then on, also if it comes too late. */
async function connectFirst(
  control: JobControl,
  connect: Reconnect,
  { timeouts }: MigrateOptions,
): Promise<Duplex> {
  const { connectMs } = fullTimeouts('sender', timeouts);
  try {
    return await openWithin(
      'connect',
      connectMs,
      'the receiver could not be connected',
      connect,
      control.signal,
    );
  } catch (error) {
    throw XenMigrationError.is(error) ? error : transportFailure(error, 'connecting to the receiver');
  }
}

/** `startMigrate(host, options).result`. */
export async function migrate(host: Host, options: MigrateOptions): Promise<MigrateResult> {
  return startMigrate(host, options).result;
}

/**
 * Receives a guest from a sender of this library at the other end of `from`: builds its domain, fills it, and runs it
 * once the sender has let go of it. A guest that was paused stays paused. Until then, whatever fails leaves no domain
 * behind.
 *
 * @throws UsageError for options that cannot be; everything else rejects `result`: PeerError, StreamFormatError,
 *   TimeoutError, CancelledError, HypercallError
 */
export function startReceive(host: Host, options: ReceiveOptions): ReceiveJob {
  checkPeer(options.from, 'from');
  fullTimeouts('receiver', options.timeouts);
  checkBudget(options.budget);
  const control = new JobControl('receive', undefined, options);
  const result = settled(
    options.from,
    control.run(() =>
      withinBudget(options.budget, control, () => {
        const { toolstack, restore } = builderOf(host, options);
        return runReceive(control, host, { ...options, toolstack }, restore);
      }),
    ),
    () => ({ host: 'none', state: 'unknown' }),
  );
  return {
    result,
    get status() {
      return control.status;
    },
    update: () => undefined,
    cancel: (reason) => control.cancel(reason),
  };
}

/** Who builds what is received. Only a host with Xen has an xl. */
function builderOf(
  host: Host,
  options: ReceiveOptions,
): { toolstack: Toolstack; restore: typeof runRestore } {
  const { builder = 'auto' } = options;
  const toolstack = options.toolstack ?? host.toolstack;
  if (builder === 'own' || (builder === 'auto' && host.kind !== 'xen')) {
    return { toolstack, restore: runRestore };
  }
  return xlSide(toolstack, { builds: builder === 'xl' ? 'all' : 'needed' });
}

/** `startReceive(host, options).result`. */
export async function receive(host: Host, options: ReceiveOptions): Promise<ReceiveResult> {
  return startReceive(host, options).result;
}

/** Sees to what holds for every end of a job, also of one that was cancelled before it began. */
async function settled<T>(
  peer: Duplex | undefined,
  running: Promise<T>,
  place: () => GuestWhereabouts | Promise<GuestWhereabouts>,
): Promise<T> {
  // While the job waits for a slot nobody else listens, and an error that nobody hears ends the process.
  peer?.on('error', () => undefined);
  try {
    return await running;
  } catch (error) {
    if (XenMigrationError.is(error)) error.guest ??= await place();
    throw error;
  } finally {
    peer?.destroy();
  }
}
