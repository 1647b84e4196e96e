/**
 * Saving a guest as a Migration v2 stream (xg_sr_save.c, with libxl's and xl's parts around it).
 *
 * The guest can go on here at every instant: until the image is complete and the sink has taken all of it, any failure
 * ends with the guest running, log-dirty off and the sink aborted.
 */
import { randomUUID } from 'node:crypto';
import type { Writable } from 'node:stream';
import { XenMigrationError } from '../errors.js';
import type { DomainInfo, Host } from '../host/host.js';
import { JobControl, now } from '../job.js';
import type { IterationStats } from '../progress.js';
import { LibxcRecord } from '../stream/libxc/constants.js';
import { encodeHeaders } from '../stream/libxc/headers.js';
import { Note, refuseOpenMatter } from '../toolstack/note.js';
import { openSink } from '../transport/open.js';
import type { ByteSink } from '../transport/types.js';
import { PageSender } from './batch.js';
import { cleanUpAfterFailure, type SaveResources } from './cleanup.js';
import { SaveErrorCode } from './codes.js';
import type { SaveContext } from './context.js';
import { errorOfSave, fromCallback, goneOr } from './failure.js';
import { finishSave, type SavedImage } from './finish.js';
import { prepareXlHeader, writeLibxlHead, writeLibxlTail } from './layers.js';
import { cleanLogDirty, peekLogDirty } from './logdirty.js';
import { checkOptions, openGuest } from './open.js';
import { iterationStats, sendMemoryLive } from './precopy.js';
import { SaveSteering } from './steering.js';
import { confirmSuspended, isSuspended, suspendGuest } from './suspend.js';
import { checkBudget, withinBudget } from './throttle.js';
import type { SaveJob, SaveOptions, SaveResult } from './types.js';

/** The point of a note while a stream is written. */
const UNDER_WAY = 2;

/** Where a save may go: what `openSink` takes. */
export type SaveTarget = string | number | Writable | ByteSink;

/**
 * Starts to save a guest.
 *
 * @param options.to A path, an open file descriptor, a Writable or a ByteSink. Ended when the image is complete,
 *   destroyed if the save fails
 * @returns The running job; its `result` rejects with an error of this library whose `guest` says where the guest is
 * @throws UsageError for options that cannot be
 */
export function startSave(host: Host, options: SaveOptions & { readonly to: SaveTarget }): SaveJob {
  checkOptions(options);
  checkBudget(options.budget);
  const steering = new SaveSteering(options);
  const control = new JobControl('save', options.domid, options);
  const saving = control.run(() =>
    withinBudget(options.budget, control, async (throttle) => {
      steering.throttle = throttle;
      const sink = await openSink(options.to, { signal: control.signal });
      return noted(host, options, () => runSave(control, host, sink, options, steering));
    }),
  );
  // Before anything was done to the guest, nobody had reason to ask where it is.
  const result = saving.catch(async (error: unknown) => {
    const first = errorOfSave(control, error);
    if (first.guest === undefined) {
      await cleanUpAfterFailure({ host, domid: options.domid, suspendAsked: false }, first);
    }
    throw first;
  });
  return {
    result,
    get status() {
      return control.status;
    },
    update: (changes) => steering.update(changes),
    cancel: (reason) => control.cancel(reason),
    switchover: () => steering.switchover(),
  };
}

/** Keeps a note of the save while it is under way, for `recover` to find if this process dies. */
async function noted(host: Host, options: SaveOptions, work: () => Promise<SaveResult>): Promise<SaveResult> {
  const { notes } = options.toolstack ?? host.toolstack;
  const { domid } = options;
  if (notes === undefined) return work();
  await refuseOpenMatter(notes, domid);
  const domain = await host.openDomain(domid);
  let info: DomainInfo;
  try {
    info = await domain.info();
  } finally {
    await domain.close();
  }
  const note = await Note.open(notes, 'save', {
    id: randomUUID(),
    domid,
    name: undefined,
    point: UNDER_WAY,
    paused: info.paused,
    suspended: info.shutdown,
    peer: undefined,
    peerHost: undefined,
  });
  try {
    const result = await work();
    await note.close();
    return result;
  } catch (error) {
    const state = XenMigrationError.is(error) ? error.guest?.state : undefined;
    // Whoever has the note may let a guest go on that could not be resumed; nobody may if the image is whole.
    if (state === 'suspended' && !info.shutdown && !isWhole(error)) await note.abandon();
    else await note.close();
    throw error;
  }
}

/** The image is complete, and the guest lives in it. */
function isWhole(error: unknown): boolean {
  const { code } = error as XenMigrationError;
  return code === SaveErrorCode.NOT_DESTROYED || code === SaveErrorCode.NOT_RESUMED;
}

/** Saves a guest. See `startSave`. */
export function save(host: Host, options: SaveOptions & { readonly to: SaveTarget }): Promise<SaveResult> {
  return startSave(host, options).result;
}

/**
 * Saves a guest as part of the job behind `control`: all of `startSave` but for opening the sink. The sink is ended
 * before `options.afterwards` is honoured, and aborted on failure or when the job is cancelled. The caller has seen to
 * `options.budget`: its ticket is `steering.throttle`.
 *
 * @throws errors of this library only, their `guest` set
 */
export async function runSave(
  control: JobControl,
  host: Host,
  sink: ByteSink,
  options: SaveOptions,
  steering?: SaveSteering,
): Promise<SaveResult> {
  const resources: SaveResources = { host, domid: options.domid, suspendAsked: false };
  // Without this a write to a peer that does not read would wait for ever.
  const onAbort = (): void => sink.abort(control.signal.reason);
  control.signal.addEventListener('abort', onAbort, { once: true });
  let image: SavedImage;
  try {
    control.throwIfCancelled();
    checkOptions(options);
    const context = await openGuest(control, sink, options, steering ?? new SaveSteering(options), resources);
    image = await writeImage(context, resources);
  } catch (error) {
    const first = errorOfSave(control, error);
    control.enter('cleanup');
    sink.abort(first);
    await cleanUpAfterFailure(resources, first);
    throw resources.context === undefined ? first : goneOr(first);
  } finally {
    control.signal.removeEventListener('abort', onAbort);
  }
  return finishSave(control, options, resources, image);
}

/** From the first byte to the last. */
async function writeImage(context: SaveContext, resources: SaveResources): Promise<SavedImage> {
  const { control, out, options, ops } = context;
  const format = options.format ?? 'xl';

  const xlHeader = await prepareXlHeader(context, format);
  // With nothing to copy while it runs, the guest is stopped first: what setup then maps stays as it is.
  let stopped = context.live ? undefined : await stopGuest(context, resources);
  context.allocateBitmaps(await ops.setup());
  const sender = new PageSender(context);
  resources.sender = sender;
  control.note({ total: context.p2mSize, remaining: context.p2mSize });

  control.enter('static-data');
  const { major, minor } = await context.host.xenVersion();
  control.throwIfCancelled();
  await out.write(xlHeader);
  await writeLibxlHead(context, format);
  await out.write([encodeHeaders({ type: ops.domainType, xenMajor: major, xenMinor: minor })]);
  await ops.staticData();
  await out.record(LibxcRecord.STATIC_DATA_END);
  await ops.startOfStream();

  await ops.startOfCheckpoint();
  await ops.checkVmState();
  const iterations: IterationStats[] = [];
  if (context.live) {
    control.enter('pre-copy');
    await sendMemoryLive(context, sender, iterations);
  }
  stopped ??= await stopGuest(context, resources);
  const { suspendRequestedAt, suspendedAt } = stopped;

  control.enter('stop-and-copy');
  const finalPassAt = now();
  await sendFinalPass(context, sender, iterations);
  const sentAt = now();
  if (options.verify === true) {
    control.enter('verify');
    await sendForVerification(context, sender);
  }

  control.enter('state');
  const stateAt = now();
  await confirmSuspended(context);
  await ops.endOfCheckpoint();
  await out.record(LibxcRecord.END);
  const endAt = now();
  await writeLibxlTail(context, format);
  const tailAt = now();
  control.enter('complete');
  await out.end();
  context.steering.throttle.endSwitchover();
  control.note({ transferred: out.bytes });

  return {
    context,
    sender,
    iterations,
    suspendRequestedAt,
    downtime: {
      suspend: suspendedAt - suspendRequestedAt,
      finalPass: sentAt - finalPassAt,
      state: endAt - stateAt,
      deviceModel: tailAt - endAt,
      handover: 0,
      total: now() - suspendRequestedAt,
    },
  };
}

/** The caller's last word before the guest stands still, and the guest's suspend. */
async function stopGuest(
  context: SaveContext,
  resources: SaveResources,
): Promise<{ readonly suspendRequestedAt: number; readonly suspendedAt: number }> {
  const { control, options } = context;
  if (options.beforeSwitchover !== undefined) {
    control.enter('pre-switchover');
    await fromCallback(control, 'beforeSwitchover', options.beforeSwitchover);
  }
  control.enter('suspend');
  if (!stoodStill(context)) context.steering.throttle.beginSwitchover();
  const suspendRequestedAt = now();
  resources.suspendAsked = !isSuspended(context.info);
  await suspendGuest(context);
  return { suspendRequestedAt, suspendedAt: now() };
}

/** The guest was paused or suspended when the save began: nobody notices how long it takes. */
function stoodStill({ info }: SaveContext): boolean {
  return info.paused || info.shutdown;
}

/** The pages of the suspended guest: what was dirtied since the last CLEAN and what was deferred, or all of them. */
async function sendFinalPass(
  context: SaveContext,
  sender: PageSender,
  iterations: IterationStats[],
): Promise<void> {
  const { control, live } = context;
  let dirtyPages = context.p2mSize;
  if (live) {
    dirtyPages = await cleanLogDirty(context, true);
    context.dirty.or(context.deferred);
    dirtyPages += context.deferredCount;
    // What cannot be sent from here on is really not there.
    context.forgetDeferred();
  }
  control.note({ iteration: iterations.length, remaining: dirtyPages });
  // A guest that stood still before can wait; one that was stopped for this cannot.
  const pass = await sender.sendDirty(dirtyPages, { throttled: stoodStill(context) });
  const stats = iterationStats(iterations.length, dirtyPages, pass, true);
  iterations.push(stats);
  control.iteration(stats);
}

/** VERIFY and all pages again: the receiver compares instead of copying (libxc's debug flag). */
async function sendForVerification(context: SaveContext, sender: PageSender): Promise<void> {
  await context.out.record(LibxcRecord.VERIFY);
  context.dirty.fill();
  await sender.sendDirty(context.p2mSize, { throttled: false });
  if (context.live) await peekLogDirty(context);
}
