/**
 * libxl's part of a save or restore: starts a helper as libxl does (libxl_save_callout.c), answers it, and keeps what it
 * said. Stricter than libxl, which drops what it does not understand.
 *
 * Descriptors of the helper: 0 replies, 1 messages (pipes), 2 kept as text, `ioFd` the stream, `backFd` what libxl leaves
 * in recv_fd's place. All are blocking, and their numbers are high ones, as libxl's are.
 */
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { pipe } from './pipes.js';
import { MessageReader, plainCallbacks, ProtocolError, reply } from './protocol.js';

/** Descriptors in the helper. */
const ioFd = 23;
const backFd = 21;

const project = fileURLToPath(new URL('../../../', import.meta.url));
const { bin } = JSON.parse(fs.readFileSync(`${project}package.json`, 'utf8'));

export const helpers = {
  stock: '/usr/lib/xen-4.17/bin/libxl-save-helper',
  ours: `${project}${bin['xen-migrate-save-helper']}`,
};

/** @typedef {keyof typeof helpers} HelperName */

/**
 * @typedef {object} Said one message
 * @property {string} name
 * @property {import('./protocol.js').Arguments} arguments
 * @property {number} at ms since the start
 * @property {number} [reply]
 * @property {number} [repliedAt]
 */

/**
 * @typedef {(values: import('./protocol.js').Arguments, playing: Playing) => number | Promise<number>} Answer
 */

/**
 * @typedef {object} Play
 * @property {HelperName | string} helper or a path
 * @property {'save' | 'restore'} mode
 * @property {number} domid
 * @property {number} io a descriptor of this process; stays open here
 * @property {boolean} [live] of a save
 * @property {boolean} [debug] of a save
 * @property {number} [callbacks] cbflags
 * @property {number} [streamType]
 * @property {readonly number[]} [wiring] of a restore: store_evtchn, store_domid, console_evtchn, console_domid
 * @property {Readonly<Record<string, number | Answer>>} [answers] by message name; what is not here is answered 0,
 *   `suspend` 1
 * @property {(playing: Playing) => unknown} [onStart]
 * @property {(said: Said, playing: Playing) => unknown} [onMessage] before the answer
 * @property {number} [user] to run as
 * @property {NodeJS.ProcessEnv} [env] added to the environment
 * @property {readonly string[]} [launcher] a command that execs the rest of its arguments
 * @property {readonly string[]} [argv] instead of the arguments that follow from the rest
 * @property {number} [seconds] limit
 */

/**
 * @typedef {object} Outcome
 * @property {readonly Said[]} said in order
 * @property {number | null} code
 * @property {NodeJS.Signals | null} signal
 * @property {{ retval: number, errnoval: number } | undefined} complete
 * @property {string} stderr
 * @property {number} elapsed ms
 * @property {readonly string[]} logs "level context: text"
 * @property {readonly string[]} errors texts of the log lines of level ERROR and above
 */

export class Playing {
  /** @type {Said[]} */
  said = [];
  stderr = '';
  #started = performance.now();
  #child;

  /** @param {import('node:child_process').ChildProcess} child */
  constructor(child) {
    this.#child = child;
  }

  get pid() {
    return /** @type {number} */ (this.#child.pid);
  }

  get elapsed() {
    return performance.now() - this.#started;
  }

  /** @param {NodeJS.Signals} signal */
  kill(signal = 'SIGTERM') {
    return this.#child.kill(signal);
  }

  /** As if libxl were gone: nothing is read any more, and nothing answered. */
  hangUp() {
    this.onHangUp();
  }

  /** @type {() => void} */
  onHangUp = () => {};

  /** Waits until the helper is inside a write to the stream that the pipe does not take. */
  async blocked() {
    for (let seen = 0; seen < 3;) {
      const stuck = fs.readdirSync(`/proc/${this.pid}/task`).some((task) => {
        // Number of the system call, then its arguments.
        const [call, fd] = fs.readFileSync(`/proc/${this.pid}/task/${task}/syscall`, 'utf8').split(' ');
        return (call === '1' || call === '20') && Number(fd) === ioFd;
      });
      seen = stuck ? seen + 1 : 0;
      await sleep(50);
    }
  }

  /** @param {string} name */
  named(name) {
    return this.said.filter((said) => said.name === name);
  }
}

/**
 * @param {Play} play
 * @returns {Promise<Outcome>} once the helper has ended
 * @throws ProtocolError if it breaks the protocol, or takes longer than the limit
 */
export async function playLibxl(play) {
  const callbacks = play.callbacks ?? plainCallbacks[play.mode];
  const [command = '', ...args] = [...(play.launcher ?? []), ...commandOf(play, callbacks)];
  const replies = pipe();
  const messages = pipe();
  const flags = flagsOf(play.io);
  const back = fs.openSync('/dev/null', 'r');
  /** @type {(number | 'ignore' | 'pipe')[]} */
  const stdio = Array.from({ length: ioFd + 1 }, () => 'ignore');
  [stdio[0], stdio[1], stdio[2], stdio[backFd], stdio[ioFd]] = [
    replies.readable,
    messages.writable,
    'pipe',
    back,
    play.io,
  ];
  const { user } = play;
  const child = spawn(command, args, {
    stdio,
    env: { ...process.env, ...play.env },
    ...(user === undefined ? {} : { uid: user, gid: user }),
  });
  const playing = new Playing(child);
  for (const fd of [replies.readable, messages.writable, back]) fs.closeSync(fd);
  child.stderr?.setEncoding('utf8').on('data', (text) => (playing.stderr += text));
  const socket = new net.Socket({ fd: messages.readable, readable: true, writable: false });
  const limit = setTimeout(() => child.kill('SIGKILL'), (play.seconds ?? 150) * 1000);
  const ended = new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => resolve({ code, signal }));
  });
  ended.catch(() => socket.destroy());
  let hungUp = false;
  playing.onHangUp = () => {
    if (hungUp) return;
    hungUp = true;
    socket.destroy();
    fs.closeSync(replies.writable);
  };
  try {
    await play.onStart?.(playing);
    await converse(play, callbacks, socket, replies.writable, playing);
    const { code, signal } = await ended;
    if (signal === 'SIGKILL') throw new ProtocolError(`no end: ${summary(playing)}`);
    if (flagsOf(play.io) !== flags)
      throw new ProtocolError(`the stream's flags were ${flags}, now ${flagsOf(play.io)}`);
    return outcome(playing, code, signal);
  } catch (error) {
    child.kill('SIGKILL');
    await ended.catch(() => {});
    throw error;
  } finally {
    clearTimeout(limit);
    socket.destroy();
    playing.onHangUp();
  }
}

/** @param {Play} play @param {number} callbacks */
function commandOf(play, callbacks) {
  const { mode, domid, streamType = 0 } = play;
  const helper = helpers[/** @type {HelperName} */ (play.helper)] ?? play.helper;
  if (play.argv !== undefined) return [helper, ...play.argv];
  const middle =
    mode === 'save'
      ? [domid, (play.live === true ? 1 : 0) | (play.debug === true ? 2 : 0)]
      : [domid, ...(play.wiring ?? [0, 0, 0, 0])];
  return [
    helper,
    `--${mode}-domain`,
    ...[ioFd, mode === 'save' ? backFd : -1, ...middle, callbacks, streamType].map(String),
  ];
}

/**
 * Reads and answers until the helper closes its end.
 *
 * @param {Play} play
 * @param {number} callbacks
 * @param {net.Socket} socket
 * @param {number} replies
 * @param {Playing} playing
 */
async function converse(play, callbacks, socket, replies, playing) {
  const reader = new MessageReader(play.mode, callbacks);
  /** The request that is being answered. @type {string | undefined} */
  let open;
  let complete = false;
  /** @type {Promise<void>} */
  let answering = Promise.resolve();
  /** @type {unknown} */
  let failure;
  for await (const bytes of untilClosed(socket)) {
    for (const message of reader.push(bytes)) {
      const { name, replied } = message.type;
      /** @type {Said} */
      const said = { name, arguments: message.arguments, at: playing.elapsed };
      playing.said.push(said);
      // libxl reads nothing behind complete; the stock helper has nothing but log lines to say there.
      if (complete && name !== 'log') throw new ProtocolError(`${name} after complete`);
      if (replied && open !== undefined) throw new ProtocolError(`${name} while ${open} is not answered`);
      if (name === 'complete') complete = true;
      if (!replied) {
        await play.onMessage?.(said, playing);
        continue;
      }
      open = name;
      answering = (async () => {
        await play.onMessage?.(said, playing);
        const answer = play.answers?.[name] ?? (name === 'suspend' ? 1 : 0);
        said.reply = typeof answer === 'number' ? answer : await answer(message.arguments, playing);
        open = undefined;
        said.repliedAt = playing.elapsed;
        try {
          if (!socket.destroyed) fs.writeSync(replies, reply(said.reply));
        } catch (error) {
          // A helper that was killed does not wait for its answer.
          if (/** @type {NodeJS.ErrnoException} */ (error).code !== 'EPIPE') throw error;
        }
      })();
      answering.catch((error) => {
        failure ??= error;
        socket.destroy();
      });
    }
    if (failure !== undefined) throw failure;
  }
  await answering;
  if (failure !== undefined) throw failure;
  if (reader.pending > 0) throw new ProtocolError(`${reader.pending} bytes of a message without its end`);
}

/** What comes until the helper ends, or the socket was destroyed here. @param {net.Socket} socket */
async function* untilClosed(socket) {
  try {
    yield* socket;
  } catch (error) {
    if (!socket.destroyed) throw error;
  }
}

/** @param {number} fd */
function flagsOf(fd) {
  return /^flags:\s*(\d+)$/m.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1];
}

/** @param {number} fd @returns {number} the offset that it has, shared with whoever inherited it */
export function offsetOf(fd) {
  return Number(/^pos:\s*(\d+)$/m.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1]);
}

/**
 * @param {Playing} playing
 * @param {number | null} code
 * @param {NodeJS.Signals | null} signal
 * @returns {Outcome}
 */
function outcome(playing, code, signal) {
  const logs = playing.named('log').map(({ arguments: a }) => a);
  const complete = playing.named('complete')[0]?.arguments;
  return {
    said: playing.said,
    code,
    signal,
    complete:
      complete === undefined
        ? undefined
        : { retval: Number(complete['retval']), errnoval: Number(complete['errnoval']) },
    stderr: playing.stderr,
    elapsed: playing.elapsed,
    logs: logs.map((a) => `${a['level']} ${a['context']}: ${a['text']}`),
    errors: logs.filter((a) => Number(a['level']) >= 8).map((a) => String(a['text'])),
  };
}

/** @param {Playing} playing */
function summary(playing) {
  const last = playing.said.slice(-6).map(({ name, arguments: a }) => `${name} ${JSON.stringify(a)}`);
  return `${playing.said.length} messages, the last: ${last.join('; ')}\n${playing.stderr}`;
}

/**
 * The conversation without what depends on time and on who speaks: log lines are left out, steps of one progress text are
 * one entry.
 *
 * @param {Outcome} of
 * @returns {string[]}
 */
export function conversation({ said }) {
  /** @type {string[]} */
  const lines = [];
  for (const { name, arguments: a, reply: replied } of said) {
    if (name === 'log') continue;
    const line =
      name === 'progress'
        ? `progress ${a['doing']}${a['total'] === 0 ? '' : ' …'}`
        : `${name} ${Object.values(a).join(' ')} → ${replied}`;
    if (lines.at(-1) !== line || name !== 'progress') lines.push(line);
  }
  return lines;
}
