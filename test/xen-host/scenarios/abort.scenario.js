/**
 * SIGTERM to a helper that saves a running guest, at many moments. Whatever the moment: either it dies before it has done
 * anything, or it tidies up, says complete(-1) and exits with 0; log-dirty is off in Xen and in QEMU; the guest goes on.
 */
import { constants } from 'node:os';
import { check, onStage, Reader, same } from '../libxl/stage.js';

const { EBADF, ECANCELED, EIO } = constants.errno;

/** @typedef {import('../libxl/play.js').Outcome} Outcome */
/** @typedef {import('../libxl/play.js').Playing} Playing */
/** @typedef {import('../libxl/play.js').Said} Said */
/** @typedef {import('../libxl/stage.js').Stage} Stage */

/**
 * @typedef {object} Moment
 * @property {(said: Said, playing: Playing) => boolean} [at] the message with which it comes, before its answer
 * @property {boolean} [spawned] as soon as there is a process
 * @property {boolean} [blocked] in a write that nobody reads
 * @property {boolean} [inSuspend] while the guest is being suspended: after it was asked to, before the answer
 * @property {number} [answer] of the suspend callback
 * @property {boolean} [late] the stream may be complete by then
 */

const nth = (/** @type {Playing} */ { said }, /** @type {RegExp} */ doing, /** @type {number} */ n) =>
  said.filter(({ name, arguments: a }) => name === 'progress' && doing.test(String(a['doing']))).length === n;

/** @param {RegExp} doing @param {number} [n] */
const progress = (doing, n = 1) => ({
  at: (/** @type {Said} */ said, /** @type {Playing} */ playing) =>
    said.name === 'progress' && nth(playing, doing, n),
});

/** @param {string} wanted @param {number} [enable] */
const callback = (wanted, enable) => ({
  at: (/** @type {Said} */ { name, arguments: a }) =>
    name === wanted && (enable === undefined || a['enable'] === enable),
});

/** @satisfies {Record<string, Moment>} */
const moments = {
  spawned: { spawned: true },
  'its first message': { at: (_, { said }) => said.length === 1 },
  'QEMU turns log-dirty on': callback('switch_qemu_logdirty', 1),
  'Start of stream': progress(/^Start of stream$/),
  'in the first pass': progress(/^Frames/, 3),
  'blocked in a write': { blocked: true },
  'asked to suspend': callback('suspend'),
  'asked to suspend, which fails': { ...callback('suspend'), answer: 0 },
  suspended: { inSuspend: true },
  'Domain now suspended': progress(/^Domain now suspended$/),
  'End of stream': { ...progress(/^End of stream$/), late: true },
  'QEMU turns log-dirty off': { ...callback('switch_qemu_logdirty', 0), late: true },
  complete: { ...callback('complete'), late: true },
};

/** A launcher that blocks SIGTERM, which its caller may have done. */
const blocking = [
  'python3',
  '-c',
  'import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); os.execv(sys.argv[1], sys.argv[1:])',
];

/**
 * @typedef {object} Case
 * @property {keyof typeof moments} moment
 * @property {boolean} [live]
 * @property {import('../libxl/play.js').HelperName} [helper]
 * @property {boolean} [masked]
 */

/** @param {Stage} stage @param {Case} kase */
async function terminated(stage, { moment: name, live = false, helper = 'ours', masked = false }) {
  /** @type {Moment} */
  const moment = moments[name];
  const what = `${helper}, ${stage.guest.type}, ${live ? 'live' : 'not live'}${masked ? ', SIGTERM masked' : ''}: ${name}`;
  const reader = new Reader({ reading: moment.blocked !== true });
  /** @type {Promise<void> | undefined} */
  let stuck;
  let sent = 0;
  const send = (/** @type {Playing} */ playing) => {
    sent++;
    playing.kill();
  };
  const outcome = await stage.save(reader.writable, {
    helper,
    live,
    ...(masked ? { launcher: blocking } : {}),
    onStart: (playing) => {
      if (moment.spawned === true) send(playing);
    },
    onMessage: (said, playing) => {
      if (moment.at?.(said, playing) === true) send(playing);
      if (moment.blocked === true && said.name === 'progress') {
        stuck ??= playing.blocked().then(() => {
          send(playing);
          // A second one must do no harm.
          send(playing);
        });
      }
    },
    answers: {
      suspend: async (_, playing) => {
        if (moment.answer === 0) return 0;
        await stage.suspend();
        if (moment.inSuspend === true) send(playing);
        return 1;
      },
    },
  });
  await stuck;
  reader.close();
  check(sent > 0, `${what}: the moment did not come`);
  judge(outcome, what, moment, helper, stage.hasQemu || stage.guest.type === 'pvh');
  await stage.unharmed();
}

/**
 * @param {Outcome} outcome
 * @param {string} what
 * @param {Moment} moment
 * @param {string} helper
 * @param {boolean} hvm
 */
function judge(outcome, what, moment, helper, hvm) {
  const told = `${what}: ${JSON.stringify({ ...outcome, said: outcome.said.slice(-5) })}`;
  const callbacks = outcome.said.filter(({ reply }) => reply !== undefined).map(({ name }) => name);
  if (outcome.signal !== null) {
    check(outcome.signal === 'SIGTERM', told);
    same(callbacks, [], `${what}: it died, after callbacks`);
    return;
  }
  check(outcome.code === 0 && outcome.complete !== undefined, told);
  same(outcome.stderr, '', `${what}: stderr`);
  const { retval, errnoval } = outcome.complete;
  check(moment.late === true || retval === -1, told);
  if (retval === 0) same(errnoval, 0, `errno of a success; ${told}`);
  else if (helper === 'stock') {
    // It puts a descriptor that cannot be written in the stream's place.
    same([retval, errnoval], [-1, EBADF], told);
  } else {
    const reason = outcome.errors.join('\n');
    const cancelled = /SIGTERM/.test(reason);
    // Where the suspend fails at the same time, that may be what it hears of first.
    check(cancelled || (moment.answer === 0 && /could not suspend/.test(reason)), `no reason given; ${told}`);
    same([retval, errnoval], [-1, cancelled ? ECANCELED : EIO], told);
  }
  const switches = outcome.said
    .filter(({ name }) => name === 'switch_qemu_logdirty')
    .map(({ arguments: a }) => a['enable']);
  const asked = hvm && switches.length > 0;
  same(switches, asked ? [1, 0] : [], `${what}: log-dirty of QEMU`);
}

/** @param {'pv' | 'pvh' | 'hvm'} type @param {Case[]} cases @returns {import('../lib/main.js').Scenario} */
function scenario(type, cases) {
  return {
    name: `SIGTERM at any moment, ${type}`,
    run: (t) =>
      onStage(t, type, async (stage) => {
        for (const kase of cases) {
          const begin = performance.now();
          await terminated(stage, kase);
          const { moment, helper = 'ours', live = false } = kase;
          t.log(
            `${helper}${live ? ' live' : ''}: ${moment}: ${((performance.now() - begin) / 1000).toFixed(1)} s`,
          );
        }
        await stage.guest.goesOn();
      }),
  };
}

export const scenarios = [
  scenario('pv', [
    { moment: 'in the first pass', helper: 'stock' },
    { moment: 'spawned' },
    { moment: 'its first message' },
    { moment: 'asked to suspend' },
    { moment: 'asked to suspend, which fails' },
    { moment: 'Start of stream' },
    { moment: 'Domain now suspended' },
    { moment: 'in the first pass', masked: true },
    { moment: 'blocked in a write' },
    { moment: 'End of stream' },
    { moment: 'complete' },
  ]),
  scenario('pvh', [
    { moment: 'blocked in a write', live: true, helper: 'stock' },
    { moment: 'QEMU turns log-dirty on', live: true },
    { moment: 'Start of stream', live: true },
    { moment: 'in the first pass', live: true },
    { moment: 'blocked in a write', live: true },
    { moment: 'suspended' },
    { moment: 'asked to suspend', live: true },
    { moment: 'QEMU turns log-dirty off' },
  ]),
  scenario('hvm', [
    { moment: 'QEMU turns log-dirty on', live: true },
    { moment: 'in the first pass', live: true },
    { moment: 'suspended', live: true },
    { moment: 'Domain now suspended' },
  ]),
];
